"""What the coverage-guided fuzzer calls, and what it begins with: one function for each kind of stranger's data.

A target takes any bytes and returns, or raises nothing but what the service answers with. The first byte of an input
chooses what is made of the rest, since no mutation ever finds a checksum.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json

from shared.errors import UserError
from shared.shards.patterns import expand_shards
from shared.shards.reader import iter_samples
from shared.specs import JobSpec
from shared.tasks.labels import ClassNumbers
from shared.weight_files.fingerprints import recognize
from shared.weight_files.inspection import UnreadableFile, UnsafePickle, inspect
from synth_service.api.dashboard.job_form import form_sections, goal_of, shortest
from tests.attack.checkpoints import GOOD, archive, legacy, mapping, pickled, safetensors, tensor

SHAPE: Final = (3, 8, 8)
MEMBERS: Final = ("png", "jpg", "webp", "npy", "cls")


class Target(NamedTuple):
    """One thing to fuzz.

    Attributes:
        call: takes an input; what it raises is a finding.
        seeds: inputs to begin with.
        longest: bytes of an input.
    """

    call: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    longest: int


@cache
def _file() -> Path:
    """Where inputs are put for those who read files; in memory where there is such a folder."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="dfkd-fuzz-", dir=folder)) / "input"


def check_checkpoint(data: bytes) -> None:
    """Looks into a checkpoint: the file as it is, or a pickle or header with a valid file around it."""
    forms: tuple[Callable[[bytes], bytes], ...] = (bytes, archive, legacy, safetensors)
    path = _file()
    path.write_bytes(forms[data[0] % len(forms)](data[1:]) if data else b"")
    with contextlib.suppress(UnreadableFile, UnsafePickle):
        content = inspect(path)
        assert content.parameters >= 0
        content.model_dump_json().encode()
        recognize(content.tensors)


def checkpoint_seeds() -> list[bytes]:
    """Checkpoints of every form."""
    pickles = [GOOD, pickled(mapping({"model": mapping({"module.conv.weight": tensor(8, 3, 3, 3), "b": tensor()})}))]
    header = json.dumps({"__metadata__": {}, "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}).encode()
    return [
        *(b"\0" + each for each in (archive(GOOD), legacy(GOOD), safetensors(header))),
        *(bytes([form]) + each for form in (1, 2) for each in pickles),
        b"\3" + header,
    ]


def check_shard(data: bytes) -> None:
    """Reads a shard: the tar as it is, or one with a member or an extended header of any content."""
    path = _file()
    path.write_bytes(_tar(data[0] % (len(MEMBERS) + 2), data[1:]) if data else b"")
    with contextlib.suppress(UserError):
        for samples in iter_samples([path], SHAPE, require_labels=True, labels=ClassNumbers(10), batch_size=4):
            assert samples.images.shape[1:] == SHAPE
            assert ((samples.targets >= 0) & (samples.targets < 10)).all()


def _tar(form: int, content: bytes) -> bytes:
    if form == len(MEMBERS):
        return content
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if form > len(MEMBERS):
            _add(tar, "pax", content, tarfile.XHDTYPE)
        else:
            _add(tar, f"a.{MEMBERS[form]}", content)
        _add(tar, "a.cls", b"3")
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content), kind
    tar.addfile(member, io.BytesIO(content))


def shard_seeds() -> list[bytes]:
    """Members of every format, alone and in a tar."""
    import numpy as np
    from PIL import Image

    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    contents = []
    for form in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        contents.append(buffer.getvalue())
    array = io.BytesIO()
    np.save(array, pixels.transpose(2, 0, 1))
    contents += [array.getvalue(), b"7"]
    members = [bytes([form]) + content for form, content in enumerate(contents)]
    return [
        *members,
        *(bytes([len(MEMBERS)]) + _tar(form, content) for form, content in enumerate(contents)),
        bytes([len(MEMBERS) + 1]) + b"14 path=b.png\n12 comment=x\n",
    ]


def check_pattern(data: bytes) -> None:
    """Expands a pattern of shards."""
    pattern = data.decode(errors="replace")
    with contextlib.suppress(UserError):
        for name in islice(expand_shards(pattern), 1000):
            assert len(name) <= 13 * len(pattern)


def pattern_seeds() -> list[bytes]:
    """Patterns of every form."""
    return [b"a-{000..009}.tar", b"{a,b}/{9..11}{,x}.tar", b"{2..0}", b"a.tar", b"{{}}", b"{1..}{..2}{1..2..3}"]


def check_spec(data: bytes) -> None:
    """Validates a job; fills the form with it; writes and reads what was accepted."""
    try:
        written = from_json(data, allow_inf_nan=False)
    except ValueError:
        return
    if isinstance(written, Mapping):
        form_sections(written)
        goal_of(written)
        shortest(written)
    with contextlib.suppress(ValidationError):
        spec = JobSpec.model_validate(written)
        assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def spec_seeds() -> list[bytes]:
    """Jobs of every kind."""
    teacher = {"arch": "resnet8", "checkpoint": "t.pth", "num_classes": 10, "kwargs": {"a": [1, {"b": None}]}}
    student = {"arch": "wrn16_1"}
    jobs: list[dict[str, object]] = [
        {"teacher": teacher, "student": student},
        {"teacher": teacher, "distillation": None, "synthesis": {"method": "deepinversion", "num_images": 100}},
        {"teacher": teacher, "student": student, "shards": "a-{0..9}.tar", "distillation": {"steps": 10}},
        {
            "name": "x",
            "metadata": {"a": "b"},
            "seed": 7,
            "teacher": {**teacher, "input": {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.5]}},
            "student": student,
            "synthesis": {"preset": "fast-5", "partitions": 2},
            "distillation": {"pacing": "lockstep", "augmentation": None, "export": ["onnx"]},
            "evaluation": {"shards": "held-out.tar", "every_steps": 10},
        },
    ]
    return [json.dumps(job).encode() for job in jobs]


TARGETS: Final[Mapping[str, Target]] = {
    "checkpoints": Target(check_checkpoint, checkpoint_seeds, 4096),
    "shards": Target(check_shard, shard_seeds, 8192),
    "patterns": Target(check_pattern, pattern_seeds, 1024),
    "specs": Target(check_spec, spec_seeds, 4096),
}
