"""`dfkd init` of a folder as transformers and timm write it, and of a model on a hub."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shared.networks.building import build_network_of
from shared.networks.weights import load_checkpoint
from shared.specs import JobSpec
from synth_service.cli.job_file import load_job_file
from synth_service.cli.model_folders import described
from tests.http_servers import served
from tests.synth_service.cli.conftest import dfkd


def job_of(folder: Path | str, *options: str, to: Path) -> JobSpec:
    result = dfkd("init", str(folder), "--to", str(to), "--yes", *options)
    assert result.exit_code == 0, result.stderr
    assert "guessed: student" in result.stderr  # and nothing else
    return JobSpec.model_validate(load_job_file(str(to)))


def test_a_folder_of_transformers_needs_no_question(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_labels=7, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    folder = tmp_path / "my-resnet"
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    processor = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": 48}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))

    job = job_of(folder, to=tmp_path / "job.yaml")

    assert (job.name, job.teacher.arch, job.teacher.num_classes) == ("my-resnet", "transformers:resnet", 7)
    assert job.teacher.input.shape == (3, 48, 48)
    assert (job.teacher.input.mean, job.teacher.input.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    network = build_network_of(job, job.teacher)
    load_checkpoint(network, folder / "model.safetensors", field="teacher.checkpoint")
    assert job_of(folder / "model.safetensors", to=tmp_path / "same.yaml").teacher == job.teacher


def test_a_segmenter_becomes_a_job_of_segmentation(tmp_path: Path) -> None:
    config = {
        "model_type": "segformer",
        "architectures": ["SegformerForSemanticSegmentation"],
        "id2label": {"0": "sky", "1": "sea", "2": "sand"},
        "decoder_hidden_size": 8,
    }
    folder = written(tmp_path, config, {"size": {"height": 64, "width": 96}, "image_mean": [0.5], "image_std": [0.5]})
    job = job_of(folder, to=tmp_path / "job.yaml")
    assert (job.teacher.task, job.teacher.num_classes) == ("semantic-segmentation", 3)
    assert (job.teacher.input.height, job.teacher.input.width) == (64, 96)
    assert job.teacher.kwargs == {"decoder_hidden_size": 8}
    assert job.student is not None
    assert job.student.arch == "deeplab_small"


def test_a_student_of_segmentation_says_its_task_in_its_own_header(tmp_path: Path) -> None:
    input = {"channels": 1, "height": 64, "width": 64, "mean": [0.5], "std": [0.5]}
    header = {"arch": "deeplab_small", "task": "semantic-segmentation", "num_classes": "5", "input": json.dumps(input)}
    save_file({"stem.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "student.safetensors", metadata=header)
    job = job_of(tmp_path / "student.safetensors", to=tmp_path / "job.yaml")
    assert job.teacher.task == "semantic-segmentation"
    assert job.student is not None
    assert job.student.arch == "deeplab_tiny"


def test_a_folder_of_timm_needs_no_question(tmp_path: Path) -> None:
    trained = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1], "input_size": [3, 40, 56]}
    config = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": trained, "model_args": {"drop_rate": 0}}
    job = job_of(written(tmp_path, config), to=tmp_path / "job.yaml")
    assert (job.teacher.arch, job.teacher.kwargs) == ("timm:resnet10t", {"drop_rate": 0})
    assert job.teacher.input.shape == (3, 40, 56)
    assert job.teacher.input.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(("arch", "mean"), [("timm:vit_tiny_patch16_224", 0.5), ("timm:deit_tiny_patch16_224", 0.485)])
def test_bare_weights_are_guessed_to_be_trained_as_timm_trained_its_own(tmp_path: Path, arch: str, mean: float) -> None:
    pytest.importorskip("timm")
    weights, to = written(tmp_path, {}) / "model.safetensors", tmp_path / "job.yaml"
    bare = weights.rename(tmp_path / "bare.safetensors")
    result = dfkd("init", str(bare), "--arch", arch, "--yes", "--to", str(to))
    assert result.exit_code == 0, result.stderr
    job = JobSpec.model_validate(load_job_file(str(to)))
    assert job.teacher.input.mean[0] == mean
    assert job.teacher.input.shape == (3, 224, 224)
    assert "normalization" in result.stderr.partition("guessed:")[2]


def test_an_option_wins_over_the_folder(tmp_path: Path) -> None:
    config = {"architecture": "resnet10t", "num_classes": 7, "mean": [0.1], "std": [0.3], "input_size": [3, 40, 56]}
    job = job_of(written(tmp_path, config), "--size", "24", to=tmp_path / "job.yaml")
    assert job.teacher.input.shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("processor", "mean", "std", "size"),
    [
        ({"do_normalize": False, "image_mean": [0.5], "size": {"height": 8, "width": 9}}, (0.0,), (1.0,), (8, 9)),
        ({"image_mean": [0.5], "image_std": [0.5], "size": {"shortest_edge": 8}}, (0.5,), (0.5,), (8, 8)),
        # pixels × 2/255 − 1, as EfficientNet does it
        (
            {"do_normalize": False, "rescale_factor": 2 / 255, "rescale_offset": True, "size": 8},
            (0.5,),
            (0.5,),
            (8, 8),
        ),
        # no scaling: mean and std are of pixels in [0, 255]
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [51], "size": 8}, (0.5,), (0.2,), (8, 8)),
        ({"do_center_crop": True, "crop_size": {"height": 6, "width": 6}, "size": 8}, (0.0,), (1.0,), (6, 6)),
        ({"do_resize": False, "size": 8}, (0.0,), (1.0,), (4, 4)),  # the configuration's
    ],
)
def test_what_a_processor_does_is_said_of_pixels_from_0_to_1(
    processor: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int]
) -> None:
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 4}
    found = described(config, processor, Path("folder"))
    assert found is not None
    assert (found.mean, found.std, found.size) == (mean, std, size)
    assert found.num_classes == 2  # transformers does not write its default


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "names the model BertModel, which is no image"),
        ([1], "holds no JSON object"),
    ],
)
def test_what_cannot_be_a_teacher_is_said(tmp_path: Path, config: object, message: str) -> None:
    result = dfkd("init", str(written(tmp_path, config)), "--yes", "--to", str(tmp_path / "job.yaml"))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_folder_without_weights_says_what_to_do(tmp_path: Path) -> None:
    command = ("init", str(tmp_path), "--yes", "--to", str(tmp_path / "job.yaml"))
    assert "model.safetensors" in dfkd(*command).stderr
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "max_shard_size" in dfkd(*command).stderr


class Hub(SimpleHTTPRequestHandler):
    """As much of the hub's API as a download of one revision asks for: the list of files, and each file."""

    COMMIT = "0" * 40

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        files = sorted(Path(self.directory).iterdir())
        if path.startswith("/api/models/somebody/network/tree/"):
            listed = [
                {"type": "file", "oid": each.name, "size": each.stat().st_size, "path": each.name} for each in files
            ]
            self.reply(json.dumps(listed).encode(), "application/json", '"tree"')
        elif path.startswith("/api/models/somebody/network"):
            names = [{"rfilename": each.name} for each in files]
            about = {"id": "somebody/network", "sha": self.COMMIT, "siblings": names}
            self.reply(json.dumps(about).encode(), "application/json", '"about"')
        elif path.startswith("/somebody/network/resolve/"):
            file = Path(self.directory) / Path(path).name
            self.reply(file.read_bytes(), "application/octet-stream", f'"{file.name}"')
        else:
            self.send_error(404)

    def reply(self, body: bytes, kind: str, etag: str) -> None:
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "ETag": etag, "X-Repo-Commit": self.COMMIT}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Address of a stand-in for the hub that has `somebody/network`, of timm's form."""
    config = {"architecture": "resnet10t", "num_classes": 7, "mean": [0.1], "std": [0.3], "input_size": [3, 32, 32]}
    folder = written(tmp_path, config)
    (folder / "train.py").write_text("raise SystemExit('a stranger ran')")
    with served(ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(folder)))) as address:
        yield address


def test_a_name_on_the_hub_is_fetched_without_its_code(tmp_path: Path, hub: str) -> None:
    pytest.importorskip("huggingface_hub")
    to = tmp_path / "job.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "synth_service.cli", "init", "somebody/network", "--yes", "--to", str(to)],
        env={"PATH": "/usr/bin:/bin", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job = JobSpec.model_validate(load_job_file(str(to)))
    assert (job.name, job.teacher.arch) == ("network", "timm:resnet10t")
    assert not list((tmp_path / "cache").rglob("train.py"))


def test_a_file_that_is_missing_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = dfkd("init", "models/teacher.pt", "--yes")
    assert result.exit_code == 2
    assert "No such file" in result.stderr


def written(folder: Path, config: object, processor: object = None) -> Path:
    """A folder with a network of a layer or two and what its libraries write beside it."""
    folder = folder / "model"
    folder.mkdir()
    weights = {"stem.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(7, 4), "fc.bias": torch.zeros(7)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
