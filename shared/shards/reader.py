"""Samples of WebDataset tars, ours or anyone's, in batches of 8-bit arrays.

Members belong to one sample while they share the name up to the first dot. The image is ``.png``,
``.jpg``, ``.jpeg``, ``.webp`` or ``.npy``, the label ``.cls`` (the class number as text); other members
are skipped. Only one batch is in memory at a time, and everything wrong with the data is a ``UserError``
that names the sample. The only module that reads a tar.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.shards.image_codec import IMAGE_EXTENSIONS, Pixels, decode_image

UNLABELLED = -1
"""Target of a sample without ``.cls``."""

MAX_MEMBER_BYTES = 256 * 1024 * 1024

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
) -> Iterator[Samples]:
    """Read tars one after another.

    Args:
        paths: local, uncompressed tars.
        shape: (C, H, W) of the images that are wanted; grey and colour pictures are converted.
        batch_size: samples in a batch; the last one may be smaller. Batches run across tars.
        require_labels: a sample without ``.cls`` is an error.
        num_classes: labels outside ``range(num_classes)`` are an error.

    Yields:
        Batches of fresh arrays, in the order of the files.

    Raises:
        UserError: ``unreadable_dataset``, ``dataset_wrong_image_size``, ``dataset_without_images``,
            ``dataset_without_labels``, ``dataset_label_out_of_range`` or
            ``image_format_cannot_hold_channels``.
    """
    images = np.empty((batch_size, *shape), np.uint8)
    targets = np.empty(batch_size, np.int64)
    filled = total = 0
    for path in paths:
        for key, fields in _raw_samples(path, (*IMAGE_EXTENSIONS, "cls")):
            name = f"{path.name}: {key}"
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
    return sum(1 for _ in _raw_samples(path, ()))


def _raw_samples(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys of a tar in order, each with the content of those of its members that are wanted."""
    current: str | None = None
    fields: dict[str, bytes] = {}
    try:
        # Without compression: only then can the end of the archive be checked, and shards of images gain nothing.
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []  # tarfile would keep every header of the archive
                match = MEMBER_NAME.fullmatch(member.name)
                if match is None or not member.isfile():
                    continue
                key, extension = match["key"], match["extension"].lower()
                if key != current:
                    if current is not None:
                        yield current, fields
                    current, fields = key, {}
                if extension in wanted:
                    fields[extension] = _content(tar, member, path)
            _check_end(tar, path)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:  # the last two: absurd header fields
        raise UserError("unreadable_dataset", f"{path.name} is no readable, uncompressed tar ({error})") from error
    if current is not None:
        yield current, fields


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > MAX_MEMBER_BYTES:
        raise UserError(
            "unreadable_dataset", f"{path.name}: {member.name} has {member.size:,} bytes; limit {MAX_MEMBER_BYTES:,}"
        )
    file = tar.extractfile(member)
    assert file is not None, "regular files have content"
    return file.read()


def _check_end(tar: tarfile.TarFile, path: Path) -> None:
    """An archive ends in zeros. ``tarfile`` also stops, without a word, at a damaged header."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
        raise UserError("unreadable_dataset", f"{path.name} is damaged at byte {tar.offset}")


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
    try:
        label = int(text)
    except ValueError:
        raise UserError("unreadable_dataset", f"{name}.cls is {text[:40]!r}, not a class number") from None
    if label < 0 or (num_classes is not None and label >= num_classes):
        bound = "" if num_classes is None else f" and below teacher.num_classes ({num_classes})"
        raise UserError("dataset_label_out_of_range", f"{name}.cls is {label}; labels are at least 0{bound}")
    return label
