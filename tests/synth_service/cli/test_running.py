"""`dfkd up --devices`: which worker gets which GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer

from synth_service.cli.running import devices_of
from synth_service.local.service import LocalService, StopSignals


def service_on(devices: list[str], tmp_path: Path) -> LocalService:
    return LocalService(
        storage=str(tmp_path),
        redis_url=None,
        redis_folder=tmp_path / "redis",
        host="127.0.0.1",
        port=0,
        synth_workers=3,
        distillers=1,
        devices=devices,
        signals=StopSignals(),
        on_output=lambda name, line: None,
        on_event=lambda text: None,
    )


def test_numbers_of_gpus_are_devices() -> None:
    assert devices_of(None) == []
    assert devices_of("0, 2") == ["cuda:0", "cuda:2"]


@pytest.mark.parametrize("written", ["", "0,", "a", "-1", "cuda:0"])
def test_anything_else_is_refused_by_the_name_of_the_option(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as refusal:
        devices_of(written)
    assert refusal.value.exit_code == 2
    assert "--devices" in capsys.readouterr().err


def test_all_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit):
        devices_of("all")
    assert "no usable GPU" in capsys.readouterr().err


def test_each_worker_has_its_own_device_while_there_are_enough(tmp_path: Path) -> None:
    service = service_on(["cuda:0", "cuda:1", "cuda:2"], tmp_path)
    given = [service._device(place)["DFKD_DEVICE"] for place in range(4)]
    assert given == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]


def test_without_devices_the_environment_decides(tmp_path: Path) -> None:
    assert service_on([], tmp_path)._device(0) == {}
