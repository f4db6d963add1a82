"""Samples of WebDataset tars, ours or anyone's, in batches of 8-bit arrays.

Members belong to one sample while they share the name up to the first dot. The image is ``.png``,
``.jpg``, ``.jpeg``, ``.webp`` or ``.npy``, the label ``.cls`` (the class number as text); other members
are skipped. Only one batch is in memory at a time, and everything wrong with the data is a ``UserError``
that names the sample. Whoever reads a stranger's tar passes ``check``, which is called at every member, so that a
cancel is heard however long the tar is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.shards.image_codec import IMAGE_EXTENSIONS, Pixels, decode_image
from shared.shards.tar_members import DamagedTar, TarMember, tar_members

UNLABELLED = -1
"""Target of a sample without ``.cls``."""

MAX_MEMBER_BYTES = 256 * 1024 * 1024
"""Of an image; room for metadata that nobody needs, and little enough for any worker."""

MAX_BATCH_BYTES = 256 * 1024 * 1024
MAX_LABEL_BYTES = 64
MAX_LABEL_DIGITS = 18
"""A class number fits into 64 bits with its sign; no dataset has a quintillion classes."""

MEMBER_NAME = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)")
"""As webdataset splits names: the key ends at the first dot of the file name. A leading ``./`` is of the key."""

LAYOUT = f"a sample is KEY.cls beside one of {', '.join(f'KEY.{extension}' for extension in IMAGE_EXTENSIONS)}"


class Samples(NamedTuple):
    """Images (N, C, H, W) uint8 and targets (N,) int64, ``UNLABELLED`` where there is none."""

    images: Pixels
    targets: NDArray[np.int64]


def iter_samples(
    paths: Sequence[Path],
    shape: tuple[int, int, int],
    *,
    batch_size: int = 1024,
    require_labels: bool = False,
    num_classes: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Samples]:
    """Read tars one after another.

    Args:
        paths: local, uncompressed tars.
        shape: (C, H, W) of the images that are wanted; gray and color pictures are converted.
        batch_size: samples in a batch; the last one may be smaller, and all are where images are so large that a
            batch would be more than ``MAX_BATCH_BYTES``. Batches run across tars.
        require_labels: a sample without ``.cls`` is an error.
        num_classes: labels outside ``range(num_classes)`` are an error.
        check: called at every member; what it raises ends the reading.

    Yields:
        Batches of fresh arrays, in the order of the files.

    Raises:
        UserError: ``unreadable_dataset``, ``dataset_wrong_image_size``, ``dataset_without_images``,
            ``dataset_without_labels``, ``dataset_label_out_of_range`` or
            ``image_format_cannot_hold_channels``.
    """
    batch_size = max(1, min(batch_size, MAX_BATCH_BYTES // int(np.prod(shape))))
    images = np.empty((batch_size, *shape), np.uint8)
    targets = np.empty(batch_size, np.int64)
    filled = total = 0
    for path in paths:
        for key, fields in _raw_samples(path, is_wanted=True, check=check):
            name = f"{path.name}: {key[:200]}"
            images[filled] = _image(fields, shape, name)
            targets[filled] = _label(fields, name, require_labels, num_classes)
            filled += 1
            total += 1
            if filled == batch_size:
                yield Samples(images, targets)
                images, targets, filled = np.empty_like(images), np.empty_like(targets), 0
    if filled:
        yield Samples(images[:filled].copy(), targets[:filled].copy())
    if not total:
        raise UserError("dataset_without_images", f"{', '.join(path.name for path in paths)}: no samples; {LAYOUT}")


def count_samples(path: Path) -> int:
    """Samples in a tar, counted by their keys without reading the members."""
    return sum(1 for _ in _raw_samples(path, is_wanted=False, check=lambda: None))


def _raw_samples(path: Path, *, is_wanted: bool, check: Callable[[], None]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys of a tar in order, each with the content of its image and label where that is wanted."""
    current: str | None = None
    fields: dict[str, bytes] = {}
    with path.open("rb") as file:
        members = tar_members(file, path.stat().st_size, check)
        while True:
            try:
                member = next(members, None)
            except DamagedTar as error:
                raise UserError(
                    "unreadable_dataset", f"{path.name} is no readable, uncompressed tar: {error}"
                ) from error
            if member is None:
                break
            match = MEMBER_NAME.fullmatch(member.name)
            if match is None:
                continue
            key, extension = match["key"], match["extension"].lower()
            if key != current:
                if current is not None:
                    yield current, fields
                current, fields = key, {}
            if is_wanted and _counts(extension, fields):
                fields[extension] = _content(file, member, extension, path)
    if current is not None:
        yield current, fields


def _counts(extension: str, fields: dict[str, bytes]) -> bool:
    """Whether a member is of use: a label, or an image that comes before those of its sample that were read."""
    if extension not in IMAGE_EXTENSIONS:
        return extension == "cls"
    # So a sample never holds more than one image in memory, however many it has.
    known = next((position for position, each in enumerate(IMAGE_EXTENSIONS) if each in fields), len(IMAGE_EXTENSIONS))
    position = IMAGE_EXTENSIONS.index(extension)
    if position < known < len(IMAGE_EXTENSIONS):
        del fields[IMAGE_EXTENSIONS[known]]
    return position <= known


def _content(file: BinaryIO, member: TarMember, extension: str, path: Path) -> bytes:
    limit = MAX_LABEL_BYTES if extension == "cls" else MAX_MEMBER_BYTES
    if member.size > limit:
        raise UserError(
            "unreadable_dataset", f"{path.name}: {member.name[:200]} has {member.size:,} bytes; limit {limit:,}"
        )
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise UserError("unreadable_dataset", f"{path.name} is cut short in {member.name[:200]}")
    return content


def _image(fields: dict[str, bytes], shape: tuple[int, int, int], name: str) -> Pixels:
    for extension in IMAGE_EXTENSIONS:
        if extension in fields:
            return decode_image(fields[extension], extension, shape, f"{name}.{extension}")
    raise UserError("dataset_without_images", f"{name} has no image; {LAYOUT}")


def _label(fields: dict[str, bytes], name: str, required: bool, num_classes: int | None) -> int:
    text = fields.get("cls")
    if text is None:
        if required:
            raise UserError("dataset_without_labels", f"{name} has no .cls, which this use needs; {LAYOUT}")
        return UNLABELLED
    number = text.strip()
    if not number.removeprefix(b"-").isdigit():
        raise UserError("unreadable_dataset", f"{name}.cls is {text[:40]!r}, not a class number")
    if len(number) > MAX_LABEL_DIGITS:
        raise UserError("dataset_label_out_of_range", f"{name}.cls is {text[:40]!r}; labels are at least 0 and small")
    label = int(number)
    if label < 0 or (num_classes is not None and label >= num_classes):
        bound = "" if num_classes is None else f" and below teacher.num_classes ({num_classes})"
        raise UserError("dataset_label_out_of_range", f"{name}.cls is {label}; labels are at least 0{bound}")
    return label
