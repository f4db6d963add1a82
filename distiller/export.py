"""The trained student as a program: files that run without the code that built the network.

Weights alone need the network's class to be of use. A job may ask for more in ``distillation.export``; each file is
loaded again and must give the student's own logits before it counts. Not every network can be written in every
format, and a job that has trained its student does not fail for that: it says which files are missing, and why.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import torch
from torch import Tensor, nn
from torch.export import Dim

from shared.events import EventType
from shared.specs import ExportFormat, InputSpec, JobSpec
from shared.storage import job_paths
from shared.tasks.base import build_task, main_output
from shared.worker.turn import Turn

logger = structlog.get_logger()

EXAMPLE_BATCH = 2
OTHER_BATCH = 3
"""A batch of one would be taken for a constant; another size must work too."""

OTHER_HEIGHT, OTHER_WIDTH = 8, 24
"""By so many pixels larger are the images with which a file of free size is tried."""

METADATA_FILE = "metadata.json"
LONGEST_REASON = 500


class NotExportable(Exception):
    """The network, or this machine, does not allow the format. The argument says why."""


def export_student(turn: Turn, student: nn.Module) -> dict[str, Any]:
    """Writes the student in every format that the job asks for, beside its weights.

    Args:
        turn: the attempt that trained it.
        student: on any device; it stays as it is.

    Returns:
        For the job's result: the names of the files, and of formats that were not possible the reason.

    Raises:
        LeaseLost, JobStopped, WorkerStopping: as ``Turn.check``.
    """
    spec = turn.spec
    assert spec.distillation is not None
    if not spec.distillation.export:
        return {}
    teacher = spec.teacher
    task = build_task(teacher.task, teacher.num_classes, teacher.ignored_label)
    network = LogitsAlone(copy.deepcopy(student).to("cpu").eval()).eval()
    names: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for format in dict.fromkeys(spec.distillation.export):
        turn.check()
        local = turn.scratch / f"export-{format}"
        try:
            free_size = task.takes_other_sizes
            export(network, local, format, spec.teacher.input, described(spec), free_size=free_size)
        except NotExportable as error:
            reasons[format] = str(error)
            logger.warning("student_not_exported", format=format, reason=str(error))
            turn.report(EventType.STUDENT_NOT_EXPORTED, {"format": format, "reason": str(error)})
            continue
        name = job_paths.exported_student(turn.attempt.job_id, format)
        turn.broker.leases.renew(turn.attempt)  # only whoever still has the task may replace a file
        turn.persist(partial(turn.storage.put_file, local, name, move=True))
        names[format] = name
        turn.report(EventType.STUDENT_EXPORTED, {"format": format})
    return {"exports": names, "exports_failed": reasons}


def described(spec: JobSpec) -> dict[str, str]:
    """What somebody needs to know to use the file; it is written into it."""
    assert spec.student is not None
    return {
        "arch": spec.student.arch,
        "kwargs": json.dumps(spec.student.kwargs),
        "task": spec.teacher.task,
        "num_classes": str(spec.teacher.num_classes),
        "input": json.dumps(spec.teacher.input.model_dump()),
    }


class LogitsAlone(nn.Module):
    """A network without what it returns beside its logits, such as torchvision's dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, C, H, W) → logits (N, classes, …)."""
        logits = main_output(self.network(images))
        assert isinstance(logits, Tensor)
        return logits


def export(
    network: nn.Module,
    path: Path,
    format: ExportFormat,
    input: InputSpec,
    metadata: Mapping[str, str],
    *,
    free_size: bool = False,
) -> None:
    """Writes a network to a file and makes sure that the file does what the network does.

    Args:
        network: on the CPU, in eval mode. It takes images (N, C, H, W), normalized, and gives logits (N, classes).
        path: to write to.
        format: of the file.
        input: shape of the images; N is free.
        metadata: goes into the file.
        free_size: height and width are to be free, too.

    Raises:
        NotExportable: it cannot be written, or would give other logits.
    """
    examples = _images(EXAMPLE_BATCH, input)
    free: Free = {0: Dim("batch")}
    if free_size:
        free |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}  # from what size on, the network says
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of TorchScript; what matters is checked below
            run = _WRITERS[format](network, examples, path, metadata, free)
            if run is not None:
                others = _images(OTHER_BATCH, input)
                if free_size:
                    others = torch.nn.functional.pad(others, (0, OTHER_WIDTH, 0, OTHER_HEIGHT))
                torch.testing.assert_close(run(others), network(others), rtol=1e-3, atol=1e-3)
    except NotExportable:
        raise
    except OSError:
        raise  # the disk's fault, not the network's
    except Exception as error:  # a compiler refuses in as many ways as there are networks
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise NotExportable(f"{type(error).__name__}: {first_line}"[:LONGEST_REASON]) from error


def _images(count: int, input: InputSpec) -> Tensor:
    return torch.randn(count, *input.shape, generator=torch.Generator().manual_seed(count))


Run = Callable[[Tensor], Tensor]
Free = dict[int, Any]
"""Dimensions of the images that may differ, with their names."""


def _write_torchscript(
    network: nn.Module, examples: Tensor, path: Path, metadata: Mapping[str, str], free: Free
) -> Run:
    traced = torch.jit.trace(network, examples)
    torch.jit.save(traced, path, _extra_files={METADATA_FILE: json.dumps(dict(metadata)).encode()})
    loaded: Run = torch.jit.load(path, map_location="cpu")
    return loaded


def _write_torch_export(
    network: nn.Module, examples: Tensor, path: Path, metadata: Mapping[str, str], free: Free
) -> Run:
    program = torch.export.export(network, (examples,), dynamic_shapes=(free,))
    # torch insists on the suffix.
    named = path.with_suffix(".pt2")
    torch.export.save(program, named, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    named.replace(path)
    with path.open("rb") as file:
        loaded: Run = torch.export.load(file).module()
    return loaded


def _write_onnx(network: nn.Module, examples: Tensor, path: Path, metadata: Mapping[str, str], free: Free) -> None:
    """No run time for ONNX is needed here, so the file is checked and not run."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        packages = " and ".join(missing)
        raise NotExportable(f"the worker lacks {packages}; install them with `pip install 'fast-dfkd[onnx]'`")
    program = torch.onnx.export(
        network,
        (examples,),
        dynamo=True,
        dynamic_shapes=(free,),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(os.fspath(path))
    import onnx

    onnx.checker.check_model(os.fspath(path))


Writer = Callable[[nn.Module, Tensor, Path, Mapping[str, str], Free], Run | None]
_WRITERS: Final[dict[ExportFormat, Writer]] = {
    "torchscript": _write_torchscript,
    "torch-export": _write_torch_export,
    "onnx": _write_onnx,
}
