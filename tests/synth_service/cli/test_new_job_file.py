"""`dfkd init`: a job file from a checkpoint, asking only for what it does not tell."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import VisionTransformer

from distiller.export import described
from shared.networks.building import build_network
from shared.networks.weights import save_checkpoint
from shared.specs import InputSpec, JobSpec, NetworkSpec
from synth_service.cli.job_file import load_job_file
from synth_service.cli.teacher_questions import smaller
from tests.specs import small_job
from tests.synth_service.cli.conftest import dfkd


def checkpoint(folder: Path, arch: str, *, num_classes: int = 7, channels: int = 1) -> Path:
    network = build_network(
        NetworkSpec(arch=arch), num_classes=num_classes, input=InputSpec(channels=channels, height=32, width=32)
    )
    save_checkpoint(network, folder / "teacher.safetensors", {})
    return folder / "teacher.safetensors"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "job.yaml"


@pytest.mark.parametrize("arch", ["wrn16_1", "resnet20", "vgg8"])
def test_what_the_weights_tell_is_not_asked(tmp_path: Path, target: Path, arch: str) -> None:
    path = checkpoint(tmp_path, arch)
    result = dfkd("init", str(path), "--to", str(target), stdin="28x24\n0.13/0.31\n\n")
    assert result.exit_code == 0, result.stderr
    job = JobSpec.model_validate(load_job_file(str(target)))
    assert (job.teacher.arch, job.teacher.num_classes) == (arch, 7)
    assert job.teacher.input.shape == (1, 28, 24)
    assert (job.teacher.input.mean, job.teacher.input.std) == ((0.13,), (0.31,))
    assert job.student is not None
    assert result.stderr.count(":") >= 3
    assert "the file tells:" in result.stderr
    assert "classes:" not in result.stderr


def test_nothing_is_asked_with_yes_and_guesses_are_marked(tmp_path: Path, target: Path) -> None:
    result = dfkd("init", str(checkpoint(tmp_path, "resnet20", channels=3)), "--to", str(target), "--yes")
    assert result.exit_code == 0, result.stderr
    job = JobSpec.model_validate(load_job_file(str(target)))
    assert job.teacher.input.mean == (0.4914, 0.4822, 0.4465)
    assert "The normalization is A GUESS (--normalization of `dfkd init`)" in target.read_text()
    assert "guessed: image size 32 (--size), normalization cifar10 (--normalization), student resnet8" in result.stderr
    assert job.student is not None
    assert job.student.arch == "resnet8"


def test_everything_may_be_an_option(tmp_path: Path, target: Path) -> None:
    options = [
        "--arch",
        "resnet20",
        "--num-classes",
        "7",
        "--channels",
        "1",
        "--size",
        "28",
        "--normalization",
        "mnist",
    ]
    options += ["--student", "wrn16_1", "--name", 'it\'s "mine": #1', "--json", "--to", str(target)]
    result = dfkd("init", str(checkpoint(tmp_path, "resnet20")), *options)
    written = json.loads(result.stdout)
    assert written["file"] == str(target)
    assert written["spec"] == load_job_file(str(target))
    job = JobSpec.model_validate(written["spec"])
    assert job.name == 'it\'s "mine": #1'
    assert job.teacher.input.mean == (0.1307,)
    assert "A GUESS" not in target.read_text()


def test_an_unknown_network_is_asked_for(tmp_path: Path, target: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(8, 5))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.pt")
    command = ["init", str(tmp_path / "mine.pt"), "--to", str(target)]
    refused = dfkd(*command, "--yes")
    assert refused.exit_code == 2
    assert "the file does not tell the network; give it with --arch" in refused.stderr
    assert "package.module:factory" in refused.stderr
    answered = dfkd(*command, stdin="no-such-net\nmypackage.nets:build\n16\n\n\n")
    assert answered.exit_code == 0, answered.stderr
    assert "`no-such-net` is not a known architecture" in answered.stderr
    job = JobSpec.model_validate(load_job_file(str(target)))
    assert (job.teacher.arch, job.teacher.num_classes) == ("mypackage.nets:build", 5)
    assert job.synthesis is not None
    assert "no BatchNorm statistics" in target.read_text()


def test_a_checkpoint_in_the_storage_is_named_from_its_root(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "models").mkdir(parents=True)
    path = checkpoint(tmp_path / "data" / "models", "resnet20")
    monkeypatch.setenv("DFKD_STORAGE", str(tmp_path / "data"))
    assert dfkd("init", str(path), "--to", str(target), "--yes").exit_code == 0
    assert load_job_file(str(target))["teacher"]["checkpoint"] == "models/teacher.safetensors"


def test_nothing_is_overwritten_unasked(tmp_path: Path, target: Path) -> None:
    path = checkpoint(tmp_path, "resnet20")
    target.parent.mkdir()
    target.write_text("mine")
    assert dfkd("init", str(path), "--to", str(target), "--yes").exit_code == 2
    assert target.read_text() == "mine"
    assert dfkd("init", str(path), "--to", str(target), "--yes", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--size", "big", "'big' is no number"),
        ("--size", "2", "input.height"),
        ("--normalization", "0.5", "neither MEAN/STD"),
        ("--normalization", "0.5,0.5/1", "one for each of the 1 channels"),
        ("--normalization", "0.5/0", "teacher.input.std: must be above 0"),
        ("--arch", "wrn", "did you mean"),
    ],
)
def test_wrong_answers_write_nothing(tmp_path: Path, target: Path, option: str, value: str, message: str) -> None:
    result = dfkd("init", str(checkpoint(tmp_path, "resnet20")), "--to", str(target), "--yes", option, value)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not target.exists()


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path, message in ((tmp_path / "notes.txt", "is no checkpoint"), (tmp_path / "none", "No such file")):
        result = dfkd("init", str(path), "--yes")
        assert result.exit_code == 2
        assert message in result.stderr


def test_the_flag_of_before_still_works(tmp_path: Path) -> None:
    made = []
    for flag in ("--normalization", "--normalisation"):
        target = tmp_path / f"{flag}.yaml"
        options = ["--to", str(target), "--yes", flag, "0.25/0.5"]
        assert dfkd("init", str(checkpoint(tmp_path, "resnet20")), *options).exit_code == 0
        made.append(target.read_text())
    assert made[0] == made[1]
    assert "mean: [0.25], std: [0.5]" in made[0]


def test_what_is_trained_here_needs_no_question_later(tmp_path: Path, target: Path) -> None:
    spec = small_job(student={"arch": "resnet_cifar", "kwargs": {"depth": 8, "widths": [4, 4, 8, 16]}})
    assert spec.student is not None
    student = build_network(spec.student, num_classes=10, input=spec.teacher.input)
    path = tmp_path / "student.safetensors"
    save_checkpoint(student, path, {**described(spec), "job": "job-1"})
    result = dfkd("init", str(path), "--to", str(target), "--student", "resnet8", "--yes")
    assert result.exit_code == 0, result.stderr
    assert "guessed" not in result.stderr
    teacher = JobSpec.model_validate(load_job_file(str(target))).teacher
    assert (teacher.arch, teacher.kwargs) == (spec.student.arch, spec.student.kwargs)
    assert (teacher.num_classes, teacher.input) == (10, spec.teacher.input)


@pytest.mark.parametrize("metadata", [{"arch": "no such"}, {"arch": "resnet8", "input": "{"}, {"kwargs": "[]"}])
def test_what_a_file_says_of_itself_is_not_believed_blindly(
    tmp_path: Path, target: Path, metadata: dict[str, str]
) -> None:
    network = build_network(NetworkSpec(arch="resnet20"), num_classes=7, input=InputSpec())
    save_checkpoint(network, tmp_path / "weights", metadata)
    assert dfkd("init", str(tmp_path / "weights"), "--to", str(target), "--yes").exit_code == 0
    assert load_job_file(str(target))["teacher"]["arch"] == "resnet20"


def test_the_size_goes_with_the_normalization_and_is_told_as_a_guess(tmp_path: Path, target: Path) -> None:
    path = checkpoint(tmp_path, "resnet18", channels=3)
    command = ["init", str(path), "--to", str(target), "--yes", "--normalization", "imagenet"]
    result = dfkd(*command)
    assert "guessed: image size 224 (--size)" in result.stderr
    job = load_job_file(str(target))
    assert (job["teacher"]["input"]["height"], job["synthesis"]["preset"]) == (224, "fast-50-imagenet")


def test_a_file_that_needs_code_is_told_how_to_be_saved(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    result = dfkd("init", str(tmp_path / "whole.pt"), "--yes")
    assert result.exit_code == 2
    assert "torch.save(network.state_dict()" in result.stderr


def test_a_vision_transformer_gets_what_it_can_be_inverted_by(tmp_path: Path, target: Path) -> None:
    kwargs = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    save_checkpoint(VisionTransformer(**kwargs, num_classes=7), tmp_path / "teacher.safetensors", {})
    options = ["--arch", "torchvision:vit_b_16", "--num-classes", "7", "--size", "32", "--student", "resnet8"]
    result = dfkd("init", str(tmp_path / "teacher.safetensors"), "--to", str(target), "--yes", *options)
    assert result.exit_code == 0, result.stderr
    job = JobSpec.model_validate(load_job_file(str(target)))
    assert job.synthesis is not None
    assert (job.synthesis.preset, job.synthesis.attention, job.synthesis.bn) == ("psaq-vit", 1.0, 0.0)
    assert "psaq-vit matches how its patches resemble each other" in target.read_text()


@pytest.mark.parametrize(
    ("teacher", "height", "student"),
    [
        ("resnet20_cifar_a", 32, "resnet8"),
        ("wrn40_2", 32, "wrn16_1"),
        ("mypackage.nets:build", 32, "wrn16_1"),
        ("torchvision:resnet50", 224, "torchvision:mobilenet_v3_small"),
        ("torchvision:mobilenet_v3_large", 224, "torchvision:mobilenet_v3_small"),
        ("torchvision:mobilenet_v3_small", 224, "torchvision:shufflenet_v2_x0_5"),
    ],
)
def test_the_proposed_student_costs_less_than_the_teacher(teacher: str, height: int, student: str) -> None:
    assert smaller(teacher, height) == student
