"""The notebook of the examples runs from top to bottom, and shows what it promises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from shared.storage import Storage
from tests.e2e.service import REPOSITORY, Service


@pytest.fixture
def service(redis_url: str, tmp_path: Path) -> Iterator[Service]:
    service = Service(redis_url, Storage(str(tmp_path / "storage")), tmp_path / "logs", {})
    try:
        service.start_all()
        yield service
    finally:
        service.stop()


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_URL", str(service.client.base_url))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook: Any = nbformat.read(REPOSITORY / "examples" / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(REPOSITORY)}}).execute()
    outputs = {cell["id"]: cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"}
    shown = "".join(each["data"].get("text/html", "") for each in outputs["wait"] if "data" in each)
    assert "<progress" in shown
    assert "data:image/png;base64," in shown
    assert "256/256 images" in shown
    assert "(32, 1, 16, 16)" in outputs["stream"][-1]["data"]["text/plain"]
    assert os.environ["DFKD_URL"]
