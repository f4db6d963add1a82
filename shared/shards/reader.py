"""Samples of WebDataset tars, ours or anyone's, in batches of 8-bit arrays.

Members belong to one sample while they share the name up to the first dot. The image is ``.png``,
``.jpg``, ``.jpeg``, ``.webp`` or ``.npy``, the label what the task's ``LabelFormat`` says, such as ``.cls``
(the class number as text); other members are skipped. Only one batch is in memory at a time, and everything
wrong with the data is a ``UserError`` that names the sample. Whoever reads a stranger's tar passes ``check``,
which is called at every member, so that a cancel is heard however long the tar is.

Not read through ``webdataset``, which rests on ``tarfile``: it ends without a word at a damaged header, at a cut
between two members and at the end of the first of two tars that were joined, passes over links, takes whatever size a
header claims into memory, and yields a key that comes twice as two samples. Names are split into keys as it does it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from shared.errors import UserError
from shared.shards.image_codec import IMAGE_EXTENSIONS, Pixels, decode_image
from shared.shards.tar_members import DamagedTar, TarMember, tar_members
from shared.tasks.labels import ClassNumbers, LabelFormat, Labels

MAX_MEMBER_BYTES = 256 * 1024 * 1024
"""Of an image; room for metadata that nobody needs, and little enough for any worker."""

NAMES_LISTED = 5
"""Files in a message about all of them."""

MAX_BATCH_BYTES = 256 * 1024 * 1024

MEMBER_NAME = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)")
"""As webdataset splits names: the key ends at the first dot of the file name. A leading ``./`` is of the key."""

CLASS_NUMBERS = ClassNumbers()


class Samples(NamedTuple):
    """Images (N, C, H, W) uint8 and targets (N, …), which hold ``UNLABELLED`` where there is no label."""

    images: Pixels
    targets: Labels


def iter_samples(
    paths: Iterable[Path],
    shape: tuple[int, int, int],
    *,
    batch_size: int = 1024,
    labels: LabelFormat = CLASS_NUMBERS,
    read_labels: bool = True,
    require_labels: bool = False,
    any_size: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Samples]:
    """Read tars one after another.

    Args:
        paths: local, uncompressed tars; some of them, but not all, may be empty. The next one is asked for when the one
            before has been read.
        shape: (C, H, W) of the images that are wanted; gray and color pictures are converted.
        batch_size: samples in a batch; the last one may be smaller, and all are where images are so large that a
            batch would be more than ``MAX_BATCH_BYTES``. Batches run across tars.
        labels: how labels lie in the tars, and which there may be.
        read_labels: look at labels at all; if not, none that is there is an obstacle, and every target is unlabeled.
        require_labels: a sample without a label is an error.
        any_size: images may have other heights and widths than ``shape``. A batch holds images of one size, so a
            new one begins wherever the size changes.
        check: called at every member; what it raises ends the reading.

    Yields:
        Batches of fresh arrays, in the order of the files.

    Raises:
        UserError: ``unreadable_dataset``, ``dataset_wrong_image_size``, ``dataset_without_images``,
            ``dataset_without_labels``, ``dataset_label_out_of_range`` or
            ``image_format_cannot_hold_channels``.
    """
    batch: _Batch | None = None
    total = 0
    read: list[str] = []
    for path in paths:
        read.append(path.name)
        for key, fields in _raw_samples(path, labels, labels.members if read_labels else (), check=check):
            name = f"{path.name}: {key[:200]}"
            image = _image(fields, shape, name, any_size, labels)
            if batch is not None and (batch.is_full or batch.images.shape[1:] != image.shape):
                yield batch.samples()
                batch = None
            if batch is None:
                room = max(1, min(batch_size, MAX_BATCH_BYTES // image.size))
                batch = _Batch(room, image.shape, labels)
            batch.add(image, _label(fields, image.shape, name, require_labels, labels))
            total += 1
    if batch is not None:
        yield batch.samples()
    if not total:
        more = f" and {len(read) - NAMES_LISTED} more" if len(read) > NAMES_LISTED else ""
        names = ", ".join(read[:NAMES_LISTED])
        raise UserError("dataset_without_images", f"{names}{more}: no samples; {layout(labels)}")


class _Batch:
    """Samples of one size on their way into arrays."""

    def __init__(self, room: int, shape: tuple[int, ...], labels: LabelFormat) -> None:
        channels, height, width = shape
        self.images = np.empty((room, channels, height, width), np.uint8)
        self._targets = np.empty((room, *labels.shape((channels, height, width))), labels.dtype)
        self._filled = 0

    @property
    def is_full(self) -> bool:
        return self._filled == len(self.images)

    def add(self, image: Pixels, label: Labels) -> None:
        self.images[self._filled] = image
        self._targets[self._filled] = label
        self._filled += 1

    def samples(self) -> Samples:
        if self.is_full:
            return Samples(self.images, self._targets)
        return Samples(self.images[: self._filled].copy(), self._targets[: self._filled].copy())


def layout(labels: LabelFormat) -> str:
    """What a sample looks like, for errors."""
    images = ", ".join(f"KEY.{extension}" for extension in IMAGE_EXTENSIONS)
    return f"a sample is {' or '.join(f'KEY.{member}' for member in labels.members)} beside one of {images}"


def count_samples(path: Path) -> int:
    """Samples in a tar, counted by their keys without reading the members."""
    return sum(1 for _ in _raw_samples(path, None, (), check=lambda: None))


def _raw_samples(
    path: Path, labels: LabelFormat | None, label_members: Sequence[str], *, check: Callable[[], None]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys of a tar in order, each with the content of its image and label; of nothing where these are not wanted."""
    current: str | None = None
    fields: dict[str, bytes] = {}
    keys: set[bytes] = set()
    present: set[str] = set()
    known = (*IMAGE_EXTENSIONS, *(labels.members if labels is not None else ()))
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
            if member.link is not None:
                if extension in known:
                    message = f"{path.name}: {member.name[:200]} is a link to {member.link[:200]}; pack what it stands "
                    raise UserError("unreadable_dataset", message + "for (tar --dereference --hard-dereference)")
                continue
            if key != current:
                if current is not None:
                    yield current, fields
                current, fields, present = key, {}, set()
                _check_new(key, keys, path)
            if extension in known:
                if extension in present:
                    raise UserError("unreadable_dataset", f"{path.name}: {member.name[:200]} is there twice")
                present.add(extension)
            if labels is not None and _counts(extension, fields, label_members):
                limit = MAX_MEMBER_BYTES if extension in IMAGE_EXTENSIONS else labels.max_bytes
                fields[extension] = _content(file, member, path, limit)
    if current is not None:
        yield current, fields


def _check_new(key: str, keys: set[bytes], path: Path) -> None:
    """Refuses a key that came before another one: which of its members belong together, nobody can tell."""
    digest = hashlib.blake2b(key.encode(errors="replace"), digest_size=12).digest()  # keys may be long
    if digest in keys:
        message = f"{path.name}: the members of {key[:200]} are not side by side, or two samples have this key; "
        raise UserError("unreadable_dataset", message + "pack the files in the order of their names, each key once")
    keys.add(digest)


def _counts(extension: str, fields: dict[str, bytes], label_members: Sequence[str]) -> bool:
    """Whether a member is of use: a label, or an image that comes before those of its sample that were read."""
    if extension not in IMAGE_EXTENSIONS:
        return extension in label_members
    # So a sample never holds more than one image in memory, however many it has.
    known = next((position for position, each in enumerate(IMAGE_EXTENSIONS) if each in fields), len(IMAGE_EXTENSIONS))
    position = IMAGE_EXTENSIONS.index(extension)
    if position < known < len(IMAGE_EXTENSIONS):
        del fields[IMAGE_EXTENSIONS[known]]
    return position <= known


def _content(file: BinaryIO, member: TarMember, path: Path, limit: int) -> bytes:
    if member.size > limit:
        raise UserError(
            "unreadable_dataset", f"{path.name}: {member.name[:200]} has {member.size:,} bytes; limit {limit:,}"
        )
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise UserError("unreadable_dataset", f"{path.name} is cut short in {member.name[:200]}")
    return content


def _image(
    fields: dict[str, bytes], shape: tuple[int, int, int], name: str, any_size: bool, labels: LabelFormat
) -> Pixels:
    for extension in IMAGE_EXTENSIONS:
        if extension in fields:
            return decode_image(fields[extension], extension, shape, f"{name}.{extension}", any_size=any_size)
    raise UserError("dataset_without_images", f"{name} has no image; {layout(labels)}")


def _label(fields: dict[str, bytes], shape: tuple[int, ...], name: str, required: bool, labels: LabelFormat) -> Labels:
    channels, height, width = shape
    if any(member in fields for member in labels.members):
        return labels.decode(fields, (channels, height, width), name)
    if required:
        wanted = " or ".join(f".{member}" for member in labels.members)
        raise UserError("dataset_without_labels", f"{name} has no {wanted}, which this use needs; {layout(labels)}")
    return labels.unlabeled((channels, height, width))
