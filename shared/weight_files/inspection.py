"""What is in a checkpoint file, found out without torch: its format, its tensors, which network it may be of.

So the API can refuse at once what no worker would load. What passes is loaded by ``shared.networks.weights``,
which checks again, with the network at hand.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from pydantic import BaseModel, Field
from pydantic_core import from_json

from shared.weight_files.pickles import TensorShape, UnreadableFile, UnsafePickle, element_count, read_legacy, read_zip

__all__ = ["CheckpointContent", "TensorEntry", "UnreadableFile", "UnsafePickle", "inspect"]

WRAPPER_KEYS: Final = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts store the ``state_dict``, the likeliest first."""

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")
"""What DataParallel / DistributedDataParallel and torch.compile put before every name."""

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Of a safetensors file; enough for 100,000 tensors."""

SAFETENSORS_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class TensorEntry(BaseModel):
    """A tensor of a file."""

    name: str
    dtype: str = Field(description="As safetensors names it: F32, BF16, I64, ….")
    shape: list[int]


class CheckpointContent(BaseModel):
    """What a checkpoint file holds."""

    format: Literal["safetensors", "torch", "torch-legacy"]
    tensors: list[TensorEntry]
    parameters: int = Field(description="Values in all tensors together, buffers included.")


def inspect(path: Path) -> CheckpointContent:
    """The weights in a local file. Reads headers only, however large it is.

    Raises:
        UnsafePickle: loading it would run code.
        UnreadableFile: it is no checkpoint, is damaged, or holds no weights.
    """
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(0)
        if start[8:] == b"{" and not start.startswith((b"PK", b"\x80")):
            return _content("safetensors", _read_safetensors(file, path.stat().st_size))
        if start.startswith(b"PK"):
            return _content("torch", _find_state_dict(read_zip(path)))
        if start.startswith(b"\x80"):
            return _content("torch-legacy", _find_state_dict(read_legacy(file)))
    raise UnreadableFile("it is neither a safetensors nor a torch file")


def _content(
    format: Literal["safetensors", "torch", "torch-legacy"], weights: Mapping[str, TensorShape]
) -> CheckpointContent:
    return CheckpointContent(
        format=format,
        tensors=[TensorEntry(name=name, dtype=each.dtype, shape=list(each.shape)) for name, each in weights.items()],
        parameters=sum(element_count(each.shape) for each in weights.values()),
    )


def _read_safetensors(file: BinaryIO, file_bytes: int) -> dict[str, TensorShape]:
    """The header, held against the size of the file: tensors lie one after another and fill it."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise UnreadableFile(f"its header is longer than {MAX_HEADER_BYTES:,} bytes")
    text = file.read(length)
    try:
        header = from_json(text)
        header.pop("__metadata__", None)
        found = {
            str(name): (str(entry["dtype"]), tuple(entry["shape"]), tuple(entry["data_offsets"]))
            for name, entry in header.items()
        }
        place = 0
        for name, (dtype, shape, (begin, end)) in sorted(found.items(), key=lambda each: each[1][2]):
            if any(type(size) is not int or size < 0 for size in shape):
                raise UnreadableFile(f"tensor `{name[:100]}` has no valid shape")
            if begin != place or end - begin != SAFETENSORS_BYTES[dtype] * element_count(shape):
                raise UnreadableFile(f"tensor `{name[:100]}` does not lie where its header says")
            place = end
    except UnreadableFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"its header is damaged ({type(error).__name__}: {str(error)[:200]})") from error
    if place != file_bytes - 8 - length:
        raise UnreadableFile("it is cut short, or has data that belongs to no tensor")
    if not found:
        raise UnreadableFile("it holds no tensors")
    return {name: TensorShape(dtype, shape) for name, (dtype, shape, _) in found.items()}


def _find_state_dict(content: Any) -> dict[str, TensorShape]:
    """Descend through wrappers to the mapping of names to tensors, as the loader does."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise UnreadableFile("it holds no state_dict (names to tensors)")
    odd = next(
        (name for name, each in content.items() if not isinstance(name, str) or type(each) is not TensorShape), None
    )
    if odd is not None:
        raise UnreadableFile(f"`{str(odd)[:100]}` in it is no dense tensor; expected a state_dict (names to tensors)")
    return dict(content)
