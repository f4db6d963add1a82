"""The example of static quantization does what its page says, on the digits teacher."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

from shared.shards.format import SampleBatch, write_shard
from shared.shards.image_codec import Pixels
from shared.specs import InputSpec, JobSpec, SynthesisBase
from shared.tasks.base import build_task
from synth_service.inversion import Setup, build_inverter

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "examples" / "digits"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("quantize", REPOSITORY / "examples" / "quantize" / "quantize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits teacher in a job file of its own, whose paths begin beside it."""
    fields = yaml.safe_load((DIGITS / "job.yaml").read_text(encoding="utf-8"))
    teacher = fields["teacher"] | {"checkpoint": "teacher.safetensors"}
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(yaml.safe_dump({"teacher": teacher, "synthesis": {"preset": "calibration"}}), encoding="utf-8")
    return path


def synthetic(job: Path, steps: int) -> Pixels:
    """64 images of the calibration preset, with fewer steps."""
    spec = JobSpec.model_validate(yaml.safe_load(job.read_text(encoding="utf-8")))
    assert spec.distillation is None
    assert spec.synthesis is not None
    shortened: SynthesisBase = spec.synthesis.model_copy(update={"steps": steps})
    teacher, input = _teacher(job)
    task = build_task("classification", 10)
    inverter = build_inverter(shortened, Setup(teacher, task, input, 0, torch.device("cpu")))
    images: Pixels = inverter.invert(task.targets(0, 64)).images.numpy()
    return images


def _teacher(job: Path) -> tuple[torch.nn.Module, InputSpec]:
    from shared.networks.building import build_network
    from shared.networks.weights import load_checkpoint

    spec = JobSpec.model_validate(yaml.safe_load(job.read_text(encoding="utf-8"))).teacher
    network = build_network(spec, num_classes=10, input=spec.input)
    load_checkpoint(network, DIGITS / "teacher.safetensors", field="teacher.checkpoint")
    return network, spec.input


def write_job_folder(folder: Path, images: Pixels) -> None:
    targets = np.arange(len(images)) % 10
    write_shard(
        folder / "shards",
        [SampleBatch(images, targets, {}, 1, 0)],
        job="c" * 32,
        partition=0,
        index=0,
        attempt=1,
        first_image=0,
        image_format="png",
        created_at=0.0,
    )


def test_a_network_that_is_calibrated_with_synthetic_images_keeps_its_accuracy(
    example: ModuleType, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job_folder(tmp_path / "made", synthetic(job, steps=25))
    output = tmp_path / "int8.onnx"
    arguments = [job, "--storage", DIGITS, "--images", tmp_path / "made", "--output", output]

    example.main([str(each) for each in [*arguments, "--evaluate", DIGITS / "held-out.tar"]])

    told = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("top-1"))
    assert float(told["top-1 float32"]) == 1.0
    assert float(told["top-1 int8"]) > 0.99
    assert output.stat().st_size < 600_000  # float32: 1.1 MB


def test_no_more_images_are_read_than_asked_for(example: ModuleType, job: Path) -> None:
    input = InputSpec(channels=1, height=16, width=16)
    batches = [len(batch) for batch, _ in example.normalized_batches(DIGITS / "held-out.tar", input, most=70)]
    assert batches == [32, 32, 6]


def test_a_folder_without_tars_is_told(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="neither a tar nor a job's folder"):
        list(example.normalized_batches(tmp_path, InputSpec()))
