"""The compose files, the Dockerfile and what they name: settings, services, files, requirements.

Without Docker the files are read as YAML; where a Compose is installed, it also has to accept every combination of
overrides. `docker/smoke.sh` runs all of it for real.
"""

import itertools
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings import Settings, check_exposure
from shared.worker.loop import STOP_SECONDS
from synth_service.api.server import GRACE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "docker-compose.yml"
OVERRIDES = sorted((ROOT / "docker").glob("compose.*.yml"))
OURS = {"api", "synth", "distiller"}

COMBINATIONS = list(
    itertools.chain.from_iterable(itertools.combinations(OVERRIDES, count) for count in range(len(OVERRIDES) + 1))
)
VARIABLES = {"DFKD_S3_STORAGE": "s3://bucket/prefix"}
"""What an override insists on."""


def services(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["services"]
    return found


def environment(service: dict[str, Any]) -> dict[str, str | None]:
    """A service's variables, from either form of writing them."""
    written = service.get("environment", {})
    return dict(written) if isinstance(written, dict) else {pair.partition("=")[0]: pair for pair in written}


def default(text: str) -> str:
    """A value with every ``${NAME:-default}`` replaced by its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def composes() -> list[list[str]]:
    """The Compose commands of this machine: the plugin, the script, both or none."""
    found = [["docker-compose"]] if shutil.which("docker-compose") else []
    if shutil.which("docker"):
        answer = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        found += [["docker", "compose"]] if answer.returncode == 0 else []
    return found


# -- services -----------------------------------------------------------------------------------------------------


def test_the_service_has_its_four_parts() -> None:
    assert set(services(BASE)) == OURS | {"redis"}


@pytest.mark.parametrize("path", OVERRIDES, ids=lambda path: path.name)
def test_an_override_changes_services_that_exist_or_brings_whole_ones(path: Path) -> None:
    for name, service in services(path).items():
        assert name in services(BASE) or "image" in service, f"{name} is neither in {BASE.name} nor complete"


@pytest.mark.parametrize("name", sorted(OURS | {"redis"}))
def test_no_service_can_do_more_than_it_must(name: str) -> None:
    service = services(BASE)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_only_the_api_is_published_and_only_on_loopback() -> None:
    assert {name for name, service in services(BASE).items() if "ports" in service} == {"api"}
    assert [default(port) for port in services(BASE)["api"]["ports"]] == ["127.0.0.1:8000:8000"]


def test_the_api_judges_its_exposure_by_where_it_is_published() -> None:
    api = services(BASE)["api"]
    published = environment(api)["DFKD_PUBLISHED_ADDRESS"]
    assert api["ports"][0].startswith(f"{published}:")
    assert "DFKD_ALLOW_UNAUTHENTICATED" not in environment(api)


def test_publishing_beyond_loopback_takes_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_HOST", "0.0.0.0")
    for published, keys, is_refused in (
        ("127.0.0.1", "", False),
        ("0.0.0.0", "", True),
        ("192.0.2.1", "", True),
        ("0.0.0.0", "me:a-key-of-a-good-length-0123456789", False),
    ):
        monkeypatch.setenv("DFKD_PUBLISHED_ADDRESS", published)
        monkeypatch.setenv("DFKD_API_KEYS", keys)
        with pytest.raises(ValueError, match="without an API key") if is_refused else nullcontext():
            check_exposure(Settings())


def test_processes_have_the_time_that_they_take_to_leave() -> None:
    found = services(BASE)
    assert seconds(found["api"]["stop_grace_period"]) > GRACE_SECONDS
    for name in ("synth", "distiller"):
        assert seconds(found[name]["stop_grace_period"]) > STOP_SECONDS


def test_all_wait_for_a_healthy_redis() -> None:
    assert "healthcheck" in services(BASE)["redis"]
    for name in OURS:
        assert services(BASE)[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_redis_and_its_clients_have_the_same_password() -> None:
    found = services(BASE)
    password = environment(found["redis"])["REDIS_PASSWORD"]
    assert password
    for name in OURS:
        assert environment(found[name])["DFKD_REDIS_URL"] == f"redis://:{password}@redis:6379/0"


def test_synthesis_workers_can_be_scaled() -> None:
    for path in (BASE, *OVERRIDES):
        assert not {"container_name", "hostname", "ports"} & set(services(path).get("synth", {}))


def test_the_example_finds_its_files_without_an_upload() -> None:
    spec = yaml.safe_load((ROOT / "examples/digits/job.yaml").read_text())
    for name in OURS:
        source, target, mode = services(BASE)[name]["volumes"][1].split(":")
        assert mode == "ro"
        for file in (spec["teacher"]["checkpoint"], spec["evaluation"]["shards"]):
            inside = Path("/data", file)
            assert (ROOT / source / inside.relative_to(target)).is_file()


# -- variables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [BASE, *OVERRIDES], ids=lambda path: path.name)
def test_every_setting_that_is_passed_exists(path: Path) -> None:
    known = {f"DFKD_{name.upper()}" for name in Settings.model_fields}
    for name, service in services(path).items():
        if name in OURS or "fast-dfkd" in service.get("image", ""):
            passed = {variable for variable in environment(service) if variable.startswith("DFKD_")}
            assert not passed - known, name


def test_the_defaults_are_settings_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        for variable, value in environment(services(BASE)[name]).items():
            if value is not None:
                monkeypatch.setenv(variable, default(value))
        assert Settings().redis_url == "redis://:dfkd@redis:6379/0"


def test_every_variable_is_explained_and_every_explained_variable_is_used() -> None:
    used = set()
    for path in (BASE, *OVERRIDES):
        text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        used |= set(re.findall(r"(?<!\$)\$\{(\w+)", text))
        for service in services(path).values():
            used |= {name for name, value in environment(service).items() if value is None}
    explained = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    passed_on = {f"DFKD_{name.upper()}" for name in Settings.model_fields} | {"AWS_SESSION_TOKEN"}
    assert not explained - used
    assert not used - explained - passed_on


def test_the_example_of_an_environment_changes_nothing() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert all(not line or line.startswith("#") for line in lines)


# -- images -------------------------------------------------------------------------------------------------------

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def test_every_target_exists() -> None:
    stages = set(re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, flags=re.MULTILINE))
    assert {services(BASE)[name]["build"]["target"] for name in OURS} <= stages


def test_every_build_argument_exists() -> None:
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE))
    for name in OURS:
        assert set(services(BASE)[name]["build"].get("args", {})) <= declared


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line.removeprefix("!") for line in patterns if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE):
        copied.update(line.split()[:-1])
    assert "*" in patterns
    assert admitted == copied
    assert all((ROOT / name).exists() for name in copied)
    assert not any(fnmatch(".env", name) for name in admitted)


def requirements_of(*extras: str) -> list[str]:
    functions = runpy.run_path(str(ROOT / "docker/requirements.py"))
    found: list[str] = functions["requirements"]((ROOT / "pyproject.toml").read_text(), list(extras))
    return found


@pytest.mark.parametrize("extras", re.findall(r"requirements\.py --out \S+ ([a-z0-9 ]+)", DOCKERFILE))
def test_images_install_pinned_versions(extras: str) -> None:
    pinned = {
        line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    names = {re.split(r"[^A-Za-z0-9_.-]", each)[0].lower() for each in requirements_of(*extras.split())}
    assert names >= {"redis", "pydantic"}
    assert names <= pinned


def test_the_api_image_has_no_torch() -> None:
    names = {re.split(r"[^A-Za-z0-9_.-]", each)[0] for each in requirements_of("api", "cli", "s3")}
    assert not names & {"torch", "torchvision", "numpy", "scipy"}


def test_the_package_is_labelled_with_its_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"^ARG VERSION=(\S+)", DOCKERFILE, flags=re.MULTILINE)) == {version}


# -- Compose itself -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not composes(), reason="there is no Compose here")
@pytest.mark.parametrize("overrides", COMBINATIONS, ids=lambda paths: "+".join(["base", *(p.name for p in paths)]))
def test_compose_accepts_every_combination_of_overrides(overrides: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "env").touch()
    files = [BASE, *overrides]
    for compose in composes():
        command = [*compose, "--env-file", str(tmp_path / "env"), *(f"--file={path}" for path in files), "config"]
        answer = subprocess.run(
            command, env={**os.environ, **VARIABLES}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert set(yaml.safe_load(answer.stdout)["services"]) >= OURS


@pytest.mark.skipif(not composes(), reason="there is no Compose here")
def test_object_storage_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "env").touch()
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    for compose in composes():
        command = [*compose, "--env-file", str(tmp_path / "env"), f"--file={BASE}"]
        command += [f"--file={ROOT / 'docker/compose.s3.yml'}", "config"]
        answer = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
        assert answer.returncode != 0
        assert "s3://bucket" in answer.stderr
