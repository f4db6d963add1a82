"""The student as a program. Tracing and exporting take seconds each, so the network is small."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distiller import export as module
from distiller.export import LogitsAlone, NotExportable, described, export
from shared.networks.building import build_network
from shared.specs import ExportFormat, InputSpec, NetworkSpec
from tests.specs import small_job

INPUT = InputSpec(channels=1, height=16, width=16)
METADATA = {"arch": "resnet8"}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(NetworkSpec(arch="resnet8"), num_classes=10, input=INPUT).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, *INPUT.shape)


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(images)
    return logits


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_torchscript_gives_the_same_logits(tmp_path: Path, network: nn.Module, images: Tensor) -> None:
    path = tmp_path / "student"
    export(network, path, "torchscript", INPUT, METADATA)
    extra: dict[str, Any] = {module.METADATA_FILE: ""}
    loaded = torch.jit.load(path, _extra_files=extra)
    torch.testing.assert_close(logits_of(loaded, images), logits_of(network, images))
    assert json.loads(extra[module.METADATA_FILE]) == METADATA


def test_torch_export_gives_the_same_logits(tmp_path: Path, network: nn.Module, images: Tensor) -> None:
    path = tmp_path / "student"
    export(network, path, "torch-export", INPUT, METADATA)
    extra: dict[str, Any] = {module.METADATA_FILE: ""}
    loaded = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    torch.testing.assert_close(logits_of(loaded, images), logits_of(network, images))
    assert json.loads(extra[module.METADATA_FILE]) == METADATA
    assert [each.name for each in tmp_path.iterdir()] == ["student"]


def test_onnx_gives_the_same_logits(tmp_path: Path, network: nn.Module, images: Tensor) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    path = tmp_path / "student"
    export(network, path, "onnx", INPUT, METADATA)
    model = onnx.load(path)
    (logits,) = ReferenceEvaluator(model).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), logits_of(network, images), rtol=1e-4, atol=1e-4)
    assert METADATA.items() <= {each.key: each.value for each in model.metadata_props}.items()
    assert [each.name for each in tmp_path.iterdir()] == ["student"]


class DependsOnData(nn.Module):
    """No fixed program: what it does follows from the values."""

    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1)[:, :10]
        return logits if float(images.sum()) > 0 else -logits


@pytest.mark.parametrize("format", ["torchscript", "torch-export"])
def test_a_network_that_is_no_program_is_not_exported(tmp_path: Path, format: Any) -> None:
    with pytest.raises(NotExportable) as refused:
        export(DependsOnData().eval(), tmp_path / "student", format, INPUT, {})
    assert str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_worker_without_onnx_says_what_to_install(
    tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NotExportable, match=r"fast-dfkd\[onnx\]"):
        export(network, tmp_path / "student", "onnx", INPUT, {})


def test_the_metadata_says_how_to_feed_it() -> None:
    told = described(small_job())
    assert (told["arch"], told["num_classes"], told["kwargs"]) == ("resnet8", "10", "{}")
    assert json.loads(told["input"])["height"] == 16


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize("format", ["torchscript", "torch-export", "onnx"])
def test_a_segmentation_network_takes_other_sizes_in_every_format(tmp_path: Path, format: ExportFormat) -> None:
    network = LogitsAlone(
        build_network(
            NetworkSpec(arch="deeplab", kwargs={"width": 4}), num_classes=5, task="semantic-segmentation", input=INPUT
        )
    ).eval()
    path = tmp_path / "student"
    export(network, path, format, INPUT, {}, free_size=True)
    images = torch.rand(1, 1, 40, 28)
    expected = logits_of(network, images)
    assert expected.shape == (1, 5, 40, 28)
    if format == "onnx":
        from onnx.reference import ReferenceEvaluator

        (found,) = ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
        logits = torch.from_numpy(found)
    elif format == "torchscript":
        logits = logits_of(torch.jit.load(path), images)
    else:
        logits = logits_of(torch.export.load(io.BytesIO(path.read_bytes())).module(), images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_what_a_network_returns_beside_its_logits_is_left_out() -> None:
    class Dictionary(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"out": images, "aux": images * 2}

    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(LogitsAlone(Dictionary())(images), images)
