import gzip
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from synth_service.api.dashboard import static_files


def test_every_file_is_there_with_its_type_and_may_be_kept_for_ever(client: TestClient) -> None:
    for name, file in static_files.static_files().items():
        answer = client.get(static_files.static_url(name))
        assert answer.status_code == 200
        assert answer.content == (static_files.FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == file.media_type
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_without_its_hash_a_file_is_asked_for_again(client: TestClient) -> None:
    answer = client.get("/ui/static/app.css")
    assert answer.headers["cache-control"] == "no-cache"
    assert client.get("/ui/static/app.css", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_files_travel_compressed_only_to_those_who_take_that(client: TestClient) -> None:
    with client.stream("GET", "/ui/static/app.js", headers={"Accept-Encoding": "gzip"}) as answer:
        assert gzip.decompress(b"".join(answer.iter_raw())) == (static_files.FOLDER / "app.js").read_bytes()
    assert "content-encoding" not in client.get("/ui/static/app.js", headers={"Accept-Encoding": "identity"}).headers


@pytest.mark.parametrize("path", ["../rendering.py", "%2e%2e/rendering.py", "vendor", "app.css.map", "/etc/passwd"])
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(f"/ui/static/{path}").status_code in (404, 405)


def test_nothing_that_a_page_loads_lies_elsewhere() -> None:
    """No content delivery network, and nothing inline that the Content-Security-Policy would refuse."""
    for template in sorted((static_files.FOLDER.parent / "templates").glob("*.html")):
        text = template.read_text()
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text), template
        assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", text), template
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), template
    for sheet in sorted(static_files.FOLDER.glob("*.css")):
        assert "@import" not in sheet.read_text()


def test_third_party_files_have_their_licences_and_versions() -> None:
    vendored = static_files.FOLDER / "vendor"
    told = (vendored / "README.txt").read_text()
    for path in vendored.iterdir():
        if path.suffix in (".js", ".css"):
            assert path.name in told
            assert (vendored / f"{Path(path.name).name.split('.')[0]}.LICENSE.txt").is_file()
