"""How a sample's label lies in a shard. Nothing here imports torch: whoever reads shards need not."""

from __future__ import annotations

import importlib
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.errors import UserError
from shared.tasks.descriptions import describe_task
from shared.tasks.palette import palette

Labels = NDArray[np.integer[Any]]
UNLABELLED = -1
"""Label of a sample that has none."""

MAX_MAP_BYTES = 64 * 1024 * 1024
MAP_MODES = ("P", "L", "I;16", "I")
"""Pillow's modes of pictures with one whole number for each pixel."""

MAX_DIGITS = 18
"""A class number fits into 64 bits with its sign; no dataset has a quintillion classes."""


class LabelFormat(ABC):
    """Labels to members of a shard and back.

    Args:
        num_classes: labels from there on are errors; None takes any.
        ignore_index: of label maps: marks what nobody knows the class of.
    """

    members: tuple[str, ...]
    """Extensions of the members that carry a label, such as ``cls``."""
    dtype: type[np.integer[Any]]
    max_bytes: int
    """Of one member; more is refused before it is read."""

    def __init__(self, num_classes: int | None = None, ignore_index: int | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @abstractmethod
    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Shape of the label of an image of (C, H, W)."""

    @abstractmethod
    def encode(self, label: Labels) -> dict[str, bytes]:
        """The members, by extension, of one label of ``shape``."""

    @abstractmethod
    def decode(self, members: Mapping[str, bytes], image_shape: tuple[int, int, int], name: str) -> Labels:
        """The label of one sample.

        Args:
            members: by extension; at least one of ``self.members``.
            image_shape: (C, H, W) of the sample's image.
            name: what to call the sample in an error.

        Raises:
            UserError: ``unreadable_dataset``, ``dataset_label_out_of_range`` or ``dataset_wrong_image_size``.
        """

    @abstractmethod
    def count(self, labels: Labels) -> Counter[int]:
        """How much there is of each class in labels (N, …): see ``TaskDescription.counted``."""

    def rows(self, labels: Labels) -> NDArray[np.int64]:
        """The class (N,) under which each sample is shown where samples are sorted by class."""
        return labels.astype(np.int64)

    def picture(self, image: NDArray[np.uint8], label: Labels) -> NDArray[np.uint8]:
        """What to show of a sample: (C, H, W), the image itself unless its label can be looked at too."""
        return image

    def unlabeled(self, image_shape: tuple[int, int, int]) -> Labels:
        """Stands for the label of a sample that has none."""
        return np.full(self.shape(image_shape), UNLABELLED, self.dtype)

    def describes(self, label: Labels) -> dict[str, int]:
        """What the sample's ``.json`` says of its label beside what the task says of the teacher's answer."""
        return {}

    def out_of_range(self, name: str, label: int) -> UserError:
        """The error of a label that is no class."""
        bound = "" if self.num_classes is None else f" and below teacher.num_classes ({self.num_classes})"
        return UserError("dataset_label_out_of_range", f"{name} is {label}; labels are at least 0{bound}")


def label_format(task: str, num_classes: int | None = None, ignore_index: int | None = None) -> LabelFormat:
    """How a task's labels lie in a shard.

    Raises:
        ValueError: there is no such task.
    """
    module, _, name = describe_task(task).labels.partition(":")
    labels: LabelFormat = getattr(importlib.import_module(module), name)(num_classes, ignore_index)
    return labels


class ClassNumbers(LabelFormat):
    """One class for each image: ``.cls`` with the number as text."""

    members = ("cls",)
    dtype = np.int64
    max_bytes = 64

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """One number."""
        return ()

    def encode(self, label: Labels) -> dict[str, bytes]:
        """See the base class."""
        return {"cls": b"%d" % int(label)}

    def decode(self, members: Mapping[str, bytes], image_shape: tuple[int, int, int], name: str) -> Labels:
        """See the base class."""
        text = members["cls"]
        number = text.strip()
        if not number.removeprefix(b"-").isdigit():
            raise UserError("unreadable_dataset", f"{name}.cls is {text[:40]!r}, not a class number")
        if len(number) > MAX_DIGITS:
            raise UserError(
                "dataset_label_out_of_range", f"{name}.cls is {text[:40]!r}; labels are at least 0 and small"
            )
        label = int(number)
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            raise self.out_of_range(f"{name}.cls", label)
        return np.asarray(label, self.dtype)

    def count(self, labels: Labels) -> Counter[int]:
        """See the base class: images."""
        return Counter(labels.tolist())

    def describes(self, label: Labels) -> dict[str, int]:
        """The class that the image was made for."""
        return {"target": int(label)}


class ClassMaps(LabelFormat):
    """One class for each pixel: ``.seg.png``, an 8-bit picture whose values are the classes, with a fixed palette.

    Beyond 256 values it is a 16-bit gray picture. Pixels of ``ignore_index`` are of no known class.
    """

    members = ("seg.png",)

    def __init__(self, num_classes: int | None = None, ignore_index: int | None = None) -> None:
        super().__init__(num_classes, ignore_index)
        largest = max(num_classes - 1 if num_classes else 255, ignore_index or 0)
        self.dtype = np.uint8 if largest <= 255 else np.int32
        self.max_bytes = MAX_MAP_BYTES

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(H, W)."""
        return image_shape[1:]

    def encode(self, label: Labels) -> dict[str, bytes]:
        """See the base class."""
        if self.dtype is np.uint8:
            picture = Image.fromarray(np.ascontiguousarray(label, np.uint8), "P")
            picture.putpalette(palette(self.ignore_index))
        else:
            picture = Image.fromarray(np.ascontiguousarray(label, np.uint16))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=6)
        return {"seg.png": buffer.getvalue()}

    def decode(self, members: Mapping[str, bytes], image_shape: tuple[int, int, int], name: str) -> Labels:
        """See the base class."""
        name = f"{name}.seg.png"
        size = image_shape[2], image_shape[1]
        try:
            with Image.open(io.BytesIO(members["seg.png"]), formats=["PNG"]) as picture:
                if picture.size != size:
                    raise UserError(
                        "dataset_wrong_image_size",
                        f"{name} is {picture.height}×{picture.width} and its image {size[1]}×{size[0]}; a label map "
                        "has the size of its image",
                    )
                if picture.mode not in MAP_MODES:
                    raise UserError(
                        "unreadable_dataset",
                        f"{name} has Pillow mode {picture.mode} (colors, not class numbers); store one number for each "
                        "pixel: an 8-bit picture with a palette, or a gray one of 8 or 16 bits",
                    )
                label = np.array(picture)
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders fail in many ways
            raise UserError("unreadable_dataset", f"{name} is no readable PNG ({type(error).__name__})") from error
        self._check(label, name)
        return label.astype(self.dtype)

    def _check(self, label: Labels, name: str) -> None:
        if self.num_classes is None:
            return
        wrong = label >= self.num_classes
        if self.ignore_index is not None:
            wrong &= label != self.ignore_index
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            unknown = "" if self.ignore_index is None else f", or {self.ignore_index} where it is not known"
            raise UserError(
                "dataset_label_out_of_range",
                f"{name} holds {int(label[row, column])} (row {row}, column {column}, {int(wrong.sum())} in all); "
                f"labels are at least 0 and below teacher.num_classes ({self.num_classes}){unknown}",
            )

    def count(self, labels: Labels) -> Counter[int]:
        """Pixels."""
        values, counts = np.unique(labels, return_counts=True)
        pairs = zip(values.tolist(), counts.tolist(), strict=True)
        return Counter({value: count for value, count in pairs if value != self.ignore_index})

    def rows(self, labels: Labels) -> NDArray[np.int64]:
        """The class of which an image has most, compared with the other images: a background is behind all of them."""
        classes = 1 + max((int(value) for value in np.unique(labels) if value != self.ignore_index), default=0)
        shares = np.stack([(labels == label).reshape(len(labels), -1).mean(1) for label in range(classes)], 1)
        average = shares.mean(0)
        compared = np.divide(shares, average, out=np.zeros_like(shares), where=average > 0)
        chosen: NDArray[np.int64] = compared.argmax(1)
        return chosen

    def picture(self, image: NDArray[np.uint8], label: Labels) -> NDArray[np.uint8]:
        """The image with its map to the right, in the fixed colors."""
        shown = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
        colors = np.frombuffer(palette(self.ignore_index), np.uint8).reshape(256, 3)
        return np.concatenate([shown, colors[label & 255].transpose(2, 0, 1)], axis=2)

    def unlabeled(self, image_shape: tuple[int, int, int]) -> Labels:
        """Every pixel of no known class."""
        return np.full(self.shape(image_shape), 255 if self.ignore_index is None else self.ignore_index, self.dtype)
