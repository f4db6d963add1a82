"""The shard format: a tar of samples in WebDataset layout that is written once, sealed and verified.

A sample is neighbouring members with one key: the image, its label as the task's ``LabelFormat`` writes it
(``.cls`` with the class as text), and ``.json`` with how it came about. Nothing in a shard depends on the
clock, the machine or the attempt, so the same samples give the same bytes. Only a sealed shard exists for
readers: first the tar, then its manifest, each atomically, then the caller announces it.

Written with ``tarfile`` and not ``webdataset.TarWriter``, which sorts a sample's members by name (the
image would come last) and whose package imports torch. Reading samples is ``shared.shards.reader``.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.shards.image_codec import Pixels, check_image_format, encode_image
from shared.shards.manifest import ImageFormat, ShardManifest, sample_key, shard_name
from shared.shards.reader import CLASS_NUMBERS, Samples, count_samples, iter_samples
from shared.storage import Storage
from shared.storage.digests import file_sha256
from shared.tasks.labels import LabelFormat, Labels

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


@dataclass(frozen=True, slots=True, eq=False)
class SampleBatch:
    """Images that were made together, on the CPU.

    Args:
        images: (N, C, H, W), 8 bits.
        targets: (N, …), the label of each image, as its ``LabelFormat`` takes it.
        described: what the samples' ``.json`` say of the teacher's answers: (N,) numbers each, by name.
        round: number of the batch in its partition.
        student_version: snapshot that took part; 0 is none.
    """

    images: Pixels
    targets: Labels
    described: Mapping[str, NDArray[np.number[Any]]]
    round: int
    student_version: int

    def __post_init__(self) -> None:
        lengths = {len(self.images), len(self.targets), *map(len, self.described.values())}
        if len(lengths) != 1 or self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"a batch is N uint8 images (N, C, H, W) with N labels; got {self.images.shape}, {lengths}"
            )
        for name, values in self.described.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{name} has values that are not finite")


# Writing


def write_shard(
    folder: Path,
    batches: Sequence[SampleBatch],
    *,
    job: str,
    partition: int,
    index: int,
    attempt: int,
    first_image: int,
    image_format: ImageFormat,
    created_at: float,
    labels: LabelFormat = CLASS_NUMBERS,
) -> tuple[Path, ShardManifest]:
    """Write a shard into a local folder, where nobody looks for it yet.

    Args:
        folder: made if it is missing.
        batches: at least one image in all; every image of one shape.
        job, partition, index, attempt: whose shard it is, see ``ShardManifest``.
        first_image: index of the first image in its partition.
        image_format: of the image members.
        created_at: seconds since the epoch; only the manifest holds it.
        labels: how the targets are written.

    Returns:
        Path of the tar and its manifest, whose sha256 is that of the bytes meant to be written.

    Raises:
        UserError: ``image_format_cannot_hold_channels``.
        OSError: as the disk gives it; no file is left.
    """
    channels, height, width = batches[0].images.shape[1:]
    check_image_format(image_format, channels)
    if any(batch.images.shape[1:] != (channels, height, width) for batch in batches):
        raise ValueError("all images of a shard need the same shape")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shard_name(job, partition, index, attempt)
    counts: Counter[int] = Counter()
    images = 0
    try:
        with path.open("wb") as file:
            hashed = _HashedWriter(file)
            with tarfile.open(mode="w|", fileobj=hashed, format=tarfile.USTAR_FORMAT) as tar:
                for batch in batches:
                    for position in range(len(batch.images)):
                        key = sample_key(job, partition, index, images + position)
                        _add_sample(tar, key, batch, position, image_format, labels)
                    images += len(batch.images)
                    counts.update(labels.count(batch.targets))
        manifest = ShardManifest(
            name=path.name,
            job=job,
            partition=partition,
            index=index,
            attempt=attempt,
            images=images,
            bytes=hashed.size,
            sha256=hashed.digest.hexdigest(),
            class_counts=dict(sorted(counts.items())),
            first_image=first_image,
            student_version=max(batch.student_version for batch in batches),
            channels=channels,
            height=height,
            width=width,
            image_format=image_format,
            created_at=created_at,
        )
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path, manifest


class _HashedWriter(io.RawIOBase):
    """Passes bytes on and hashes them on the way: the digest is of what was meant, not of what came to lie
    on the disk.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Buffer, /) -> int:
        self.digest.update(data)
        written = self._file.write(data)
        self.size += written
        return written


def _add_sample(
    tar: tarfile.TarFile,
    key: str,
    batch: SampleBatch,
    position: int,
    image_format: ImageFormat,
    labels: LabelFormat,
) -> None:
    _add_member(tar, f"{key}.{image_format}", encode_image(batch.images[position], image_format))
    for extension, content in labels.encode(batch.targets[position]).items():
        _add_member(tar, f"{key}.{extension}", content)
    record: dict[str, int | float] = {"round": batch.round, "student_version": batch.student_version}
    record |= labels.describes(batch.targets[position])
    record |= {name: values[position].item() for name, values in batch.described.items()}
    # Written out rather than json.dumps: a fraction is always a decimal number, since Hugging Face takes a column's
    # type from its first rows and would see 1 as an integer.
    fields = [f'"{name}":{_json_number(value)}' for name, value in sorted(record.items())]
    _add_member(tar, f"{key}.json", f"{{{','.join(fields)}}}".encode())


def _json_number(value: int | float) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file whose header depends on nothing but its name and size."""
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0
    member.size = len(data)
    member.mode = 0o644
    member.uname = member.gname = "root"
    tar.addfile(member, io.BytesIO(data))


def stage(storage: Storage, staging: str, path: Path, manifest: ShardManifest) -> None:
    """Store a written shard where no reader finds it, and give the local file up.

    Args:
        storage: where to.
        staging: folder in the storage.
        path: tar that ``write_shard`` wrote.
        manifest: its manifest.
    """
    storage.put_file(path, f"{staging}/{manifest.name}", move=True)


def seal(storage: Storage, staging: str, folder: str, manifest: ShardManifest) -> None:
    """Put a staged shard among the others: the tar, then its manifest. Can be repeated.

    Args:
        storage: where.
        staging: folder that ``stage`` was given.
        folder: of the shards.
        manifest: of the shard.
    """
    storage.move(f"{staging}/{manifest.name}", f"{folder}/{manifest.name}")
    storage.put_bytes(manifest.model_dump_json().encode(), f"{folder}/{manifest.sidecar_name}")


def discard(storage: Storage, folder: str, manifest: ShardManifest) -> None:
    """Remove a sealed shard that was refused or is damaged; the manifest first, as it must not outlive its tar."""
    storage.delete(f"{folder}/{manifest.sidecar_name}")
    storage.delete(f"{folder}/{manifest.name}")


# Reading


class DamagedShard(Exception):
    """A shard is not what its manifest promises.

    Args:
        reason: stable, for events: ``missing``, ``wrong_size``, ``wrong_sha256``, ``wrong_image_count``
            or ``unreadable``.
        message: for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def verify_shard(path: Path, manifest: ShardManifest) -> None:
    """Check size, sha256 and image count of a shard against its manifest.

    Raises:
        DamagedShard: at the first difference.
    """
    _verify_bytes(path, manifest)
    try:
        found = count_samples(path)
    except UserError as error:
        raise DamagedShard("unreadable", error.message) from error
    _compare_count(found, manifest)


def read_shard(path: Path, manifest: ShardManifest, labels: LabelFormat | None = CLASS_NUMBERS) -> Samples:
    """Verify a shard and read it whole.

    Args:
        path: the local tar.
        manifest: what it has to be.
        labels: how its labels are written; None leaves them alone, and every target says that there is none.

    Returns:
        images (N, C, H, W) and targets (N, …), in the order they were written.

    Raises:
        DamagedShard: it is not what the manifest promises.
    """
    _verify_bytes(path, manifest)
    images = np.empty((manifest.images, *manifest.shape), np.uint8)
    form, wanted = labels or CLASS_NUMBERS, labels is not None
    targets = np.empty((manifest.images, *form.shape(manifest.shape)), form.dtype)
    found = 0
    try:
        for batch in iter_samples([path], manifest.shape, labels=form, read_labels=wanted, require_labels=wanted):
            end = found + len(batch.images)
            if end <= manifest.images:
                images[found:end], targets[found:end] = batch
            found = end
    except UserError as error:
        raise DamagedShard("unreadable", error.message) from error
    _compare_count(found, manifest)
    return Samples(images, targets)


def _verify_bytes(path: Path, manifest: ShardManifest) -> None:
    try:
        size = path.stat().st_size
        if size != manifest.bytes:
            raise DamagedShard("wrong_size", f"{manifest.name} has {size} bytes, not {manifest.bytes}")
        digest = file_sha256(path)
    except FileNotFoundError:
        raise DamagedShard("missing", f"{manifest.name} is missing") from None
    if digest != manifest.sha256:
        raise DamagedShard("wrong_sha256", f"{manifest.name} has sha256 {digest}, not {manifest.sha256}")


def _compare_count(found: int, manifest: ShardManifest) -> None:
    if found != manifest.images:
        raise DamagedShard("wrong_image_count", f"{manifest.name} holds {found} images, not {manifest.images}")
