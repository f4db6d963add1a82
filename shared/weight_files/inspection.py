"""What is in a checkpoint file, found out without torch: its format, its tensors, which network it may be of.

So the API can refuse at once what no worker would load. What passes is loaded by ``shared.networks.weights``,
which checks again, with the network at hand.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from pydantic import BaseModel, Field
from pydantic_core import from_json

from shared.weight_files.formats import START_BYTES, is_safetensors
from shared.weight_files.pickles import (
    Items,
    TensorShape,
    element_count,
    is_shape,
    read_legacy,
    read_zip,
)
from shared.weight_files.refusals import UnreadableFile, UnsafePickle
from shared.weight_files.wrappers import EXTRA_STATE, unwrapped

__all__ = ["CheckpointContent", "TensorEntry", "UnreadableFile", "UnsafePickle", "inspect"]

MAX_TENSORS: Final = 20_000
"""Far more than any classifier has. What is found out of them is stored and shown."""

MAX_NAME_CHARACTERS: Final = 500
MAX_NAMES_CHARACTERS: Final = 2_000_000
"""Of all names together."""

MAX_METADATA_ENTRIES: Final = 64
MAX_METADATA_CHARACTERS: Final = 4096
"""Of one entry. What is beyond is left out."""

MAX_HEADER_BYTES: Final = 4 * 1024 * 1024
"""Of a safetensors file; enough for ``MAX_TENSORS``."""

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
    metadata: dict[str, str] = Field(
        default_factory=dict, description="What a safetensors file says of itself. Anybody may have written it."
    )


def inspect(path: Path) -> CheckpointContent:
    """The weights in a local file. Reads headers only, however large it is.

    Raises:
        UnsafePickle: loading it would run code.
        UnreadableFile: it is no checkpoint, is damaged, or holds no weights.
    """
    with path.open("rb") as file:
        start = file.read(START_BYTES)
        file.seek(0)
        if is_safetensors(start, path.stat().st_size):
            weights, metadata = _read_safetensors(file, path.stat().st_size)
            return _content("safetensors", weights, metadata)
        if start.startswith(b"PK"):
            return _content("torch", _find_state_dict(read_zip(path)))
        if start.startswith(b"\x80"):
            return _content("torch-legacy", _find_state_dict(read_legacy(file)))
    raise UnreadableFile("it is neither a safetensors nor a torch file")


def _content(
    format: Literal["safetensors", "torch", "torch-legacy"],
    weights: Mapping[str, TensorShape],
    metadata: Mapping[str, str] | None = None,
) -> CheckpointContent:
    if len(weights) > MAX_TENSORS:
        raise UnreadableFile(f"it holds more than {MAX_TENSORS:,} tensors")
    for name in weights:
        # A lone surrogate cannot be stored, and control characters are nothing to show to anybody.
        if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise UnreadableFile(
                f"the name {name[:100]!a} of a tensor cannot be shown, or has more than {MAX_NAME_CHARACTERS} "
                "characters"
            )
    if sum(map(len, weights)) > MAX_NAMES_CHARACTERS:
        raise UnreadableFile(f"the names of its tensors have more than {MAX_NAMES_CHARACTERS:,} characters in all")
    return CheckpointContent(
        format=format,
        tensors=[TensorEntry(name=name, dtype=each.dtype, shape=list(each.shape)) for name, each in weights.items()],
        parameters=sum(element_count(each.shape) for each in weights.values()),
        metadata=dict(metadata or {}),
    )


def _read_safetensors(file: BinaryIO, file_bytes: int) -> tuple[dict[str, TensorShape], dict[str, str]]:
    """Tensors and metadata of the header. Tensors must lie one after another and fill the file."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise UnreadableFile(f"its header is longer than {MAX_HEADER_BYTES:,} bytes")
    text = file.read(length)
    # Before it is parsed: an empty list of three bytes would take sixty. Brackets in names count too, but are few.
    if text.count(b"{") > MAX_TENSORS + 2 or text.count(b"[") > 2 * MAX_TENSORS or text.count(b",") > 20 * MAX_TENSORS:
        raise UnreadableFile(f"its header is of no use, or has more than {MAX_TENSORS:,} tensors")
    try:
        header = from_json(text, cache_strings="none")
        metadata = _shown_metadata(header.pop("__metadata__", None))
        found = {
            str(name): (str(entry["dtype"]), tuple(entry["shape"]), tuple(entry["data_offsets"]))
            for name, entry in header.items()
        }
        place = 0
        for name, (dtype, shape, (begin, end)) in sorted(found.items(), key=lambda each: each[1][2]):
            if not is_shape(shape):
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
    return {name: TensorShape(dtype, shape) for name, (dtype, shape, _) in found.items()}, metadata


def _shown_metadata(found: object) -> dict[str, str]:
    """What of the metadata can be shown: not too much of it, and no control characters."""
    entries = found.items() if isinstance(found, dict) else ()
    shown = {
        name: text
        for name, text in entries
        if isinstance(text, str) and len(name) + len(text) <= MAX_METADATA_CHARACTERS and f"{name}{text}".isprintable()
    }
    return dict(islice(shown.items(), MAX_METADATA_ENTRIES))


def _find_state_dict(content: Any) -> dict[str, TensorShape]:
    """The mapping of names to tensors, as the loader finds it."""
    content = unwrapped(content, lambda each: type(each) is TensorShape)
    if not isinstance(content, Items) or not content:
        raise UnreadableFile("it holds no state_dict (names to tensors)")
    plain = {name: each for name, each in content.items() if not name.endswith(EXTRA_STATE)}
    odd = next((name for name, each in plain.items() if type(each) is not TensorShape), None)
    if odd is None and content.other_keys:
        odd = "a key that is no name"
    if odd is not None:
        raise UnreadableFile(f"{odd[:100]!a} in it is no dense tensor; expected a state_dict (names to tensors)")
    return plain
