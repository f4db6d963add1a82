"""Folders with weights, ``config.json`` and ``preprocessor_config.json``, as Hugging Face's libraries write them.

They are local, or of the hub. What transformers or timm writes there says everything that a job must say of its
teacher: the network and its arguments, its classes, and the size and normalization of its images. It is read as JSON,
so neither library is needed here, and no code of the folder's author runs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from synth_service.cli.outcomes import ExitCode, fail, messages

CONFIG: Final = "config.json"
PROCESSOR: Final = "preprocessor_config.json"
WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
"""Names of the file with the weights, the better one first."""

TASKS: Final = {
    "ForImageClassification": "classification",
    "ForImageClassificationWithTeacher": "classification",
    "ForSemanticSegmentation": "semantic-segmentation",
}
"""How the class of a model ends, and the task of a job that goes with it."""

NOT_OF_THE_NETWORK: Final = frozenset(
    {
        "attn_implementation", "auto_map", "dtype", "id2label", "label2id", "model_type", "num_channels", "num_labels",
        "problem_type", "torch_dtype", "transformers_version", "use_pretrained_backbone",
    }
)  # fmt: skip
"""Fields of a configuration that the job says elsewhere, or that do not shape the network."""

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_ENDINGS: Final = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors", ".tar")


@dataclass(frozen=True)
class Described:
    """What a folder, or a file's own header, says of a network; None where it does not say."""

    arch: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    num_classes: int | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None
    """Height and width."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TeacherFiles:
    """Where a teacher is.

    Attributes:
        weights: the file to upload.
        name: for the job.
        described: what stands beside the weights; None for a file alone.
    """

    weights: Path
    name: str
    described: Described | None = None


def find_teacher(given: Path) -> TeacherFiles:
    """The teacher of a file, of a folder, or of a model's id on the hub; ends the command where it cannot be used."""
    if given.is_dir():
        return _in_folder(given, given.absolute().name)
    if given.name in WEIGHTS and (given.parent / CONFIG).is_file():
        return _in_folder(given.parent, given.absolute().parent.name)
    if not given.exists() and _HUB_ID.fullmatch(str(given)) and given.suffix not in _FILE_ENDINGS:
        return _in_folder(_from_hub(str(given)), given.name)
    return TeacherFiles(given, given.stem)


def _in_folder(folder: Path, name: str) -> TeacherFiles:
    weights = next((folder / each for each in WEIGHTS if (folder / each).is_file()), None)
    if weights is None:
        parts = next((each for each in WEIGHTS if (folder / f"{each}.index.json").is_file()), None)
        remedy = (
            "its weights are in several files; save it again in one: model.save_pretrained(folder, "
            "max_shard_size='100GB')"
            if parts
            else f"it holds neither {' nor '.join(WEIGHTS)}; give the file with the weights, or a folder that "
            "save_pretrained wrote"
        )
        fail(f"{folder}: {remedy}", ExitCode.USAGE)
    if not (folder / CONFIG).is_file():
        return TeacherFiles(weights, name)
    config = _read(folder / CONFIG)
    processor = _read(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else None
    return TeacherFiles(weights, name, described(config, processor, folder))


def described(config: dict[str, Any], processor: dict[str, Any] | None, folder: Path) -> Described | None:
    """What both files say together; None for a configuration of neither library.

    Args:
        config: of transformers, or of timm on the hub.
        processor: of transformers, where there is one.
        folder: to name in an error.
    """
    if isinstance(config.get("architecture"), str):
        return _of_timm(config)
    model_type, classes = config.get("model_type"), config.get("architectures") or []
    if not isinstance(model_type, str):
        return None
    task = next((TASKS[end] for each in classes for end in TASKS if str(each).endswith(end)), None)
    if task is None:
        fail(
            f"{folder}: config.json names the model {', '.join(map(str, classes)) or model_type}, which is no image "
            "classifier and no segmenter (…ForImageClassification, …ForSemanticSegmentation)",
            ExitCode.USAGE,
        )
    kwargs = {name: value for name, value in config.items() if name not in NOT_OF_THE_NETWORK and name[:1] != "_"}
    if not str(classes[0]).endswith("WithTeacher"):  # which only the class tells from the usual one
        kwargs.pop("architectures", None)
    labels = config.get("id2label")
    size = _size(processor or {}) or _pair(config.get("image_size"))
    mean, std = _normalization(processor) if processor is not None else (None, None)
    return Described(
        arch=f"transformers:{model_type}",
        kwargs=kwargs,
        task=task,
        # transformers leaves it out where there are two, its default.
        num_classes=len(labels) if isinstance(labels, dict) else int(config.get("num_labels", 2)),
        channels=config.get("num_channels", 3),
        size=size,
        mean=mean,
        std=std,
    )


def published_by_timm(arch: str) -> Described | None:
    """What timm's own weights of a name were trained with: for weights without a word of their own, a good guess.

    None for other names than timm's, and where timm is not installed or does not say.
    """
    prefix, _, name = arch.partition(":")
    if prefix != "timm":
        return None
    try:
        from timm.models import get_pretrained_cfg

        found = get_pretrained_cfg(name)
    except (ImportError, RuntimeError):  # not installed; no such set of weights
        return None
    return None if found is None else _of_timm({"architecture": name, "pretrained_cfg": vars(found)})


def _of_timm(config: dict[str, Any]) -> Described:
    """timm's own form: `architecture`, `num_classes`, `pretrained_cfg` (once at the top level), `model_args`."""
    trained = config.get("pretrained_cfg") or config
    input_size = trained.get("input_size")
    channels, size = (int(input_size[0]), (int(input_size[1]), int(input_size[2]))) if input_size else (None, None)
    arguments = config.get("model_args")
    return Described(
        arch=f"timm:{config['architecture']}",
        kwargs=dict(arguments) if isinstance(arguments, dict) else {},
        num_classes=config.get("num_classes") or trained.get("num_classes"),
        channels=channels,
        size=size,
        mean=_numbers(trained.get("mean")),
        std=_numbers(trained.get("std")),
    )


def _normalization(processor: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], from what a processor does to pixels in [0, 255]."""
    if processor.get("do_flip_channel_order"):
        messages.print(
            "[yellow]note:[/] the processor turns RGB into BGR; the images of the job have their channels in that order"
        )
    scale = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    normalizes = processor.get("do_normalize", "image_mean" in processor)
    mean = (normalizes and _numbers(processor.get("image_mean"))) or (0.0,)
    std = (normalizes and _numbers(processor.get("image_std"))) or (1.0,)
    return (
        tuple(round((each + offset) / scale, 6) for each in mean),
        tuple(round(each / scale, 6) for each in std),
    )


def _size(processor: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of what comes out of a processor; without a crop, a shortest edge is taken for both."""
    if processor.get("do_center_crop") and (cropped := _pair(processor.get("crop_size"))):
        return cropped
    return _pair(processor.get("size")) if processor.get("do_resize", True) else None


def _pair(value: object) -> tuple[int, int] | None:
    if isinstance(value, dict):
        edge = value.get("shortest_edge")
        value = [value.get("height", edge), value.get("width", edge)]
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, int) for each in value):
        return value[0], value[1]
    return None


def _numbers(value: object) -> tuple[float, ...] | None:
    if isinstance(value, int | float):
        return (float(value),)
    return tuple(map(float, value)) if isinstance(value, list | tuple) and value else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path}: cannot be read as JSON: {error}", ExitCode.USAGE)
    if not isinstance(content, dict):
        fail(f"{path}: holds no JSON object", ExitCode.USAGE)
    return content


def _from_hub(name: str) -> Path:
    """The folder of a model in the hub's own cache, downloaded if it is not there; weights and JSON alone."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        fail(
            f"{name}: is no file or folder here, and for a model of the Hugging Face hub the extra is missing: "
            "pip install 'fast-dfkd[hub]'",
            ExitCode.USAGE,
        )
    messages.print(f"there is no file {name}; looking for the model of that name on the Hugging Face hub …")
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, PROCESSOR, *WEIGHTS]))
    except Exception as error:  # network, missing model, missing permission: of a dozen types
        first = str(error).strip().split("\n", 1)[0]
        fail(
            f"{name}: is no file or folder here, and the hub did not give it: {type(error).__name__}: {first}",
            ExitCode.USAGE,
        )
