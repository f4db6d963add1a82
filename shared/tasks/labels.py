"""How a sample's label lies in a shard. NumPy at most: whoever reads shards need not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError

Labels = NDArray[np.integer[Any]]
UNLABELLED = -1
"""Label of a sample that has none."""

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

    def unlabelled(self, image_shape: tuple[int, int, int]) -> Labels:
        """Stands for the label of a sample that has none."""
        return np.full(self.shape(image_shape), UNLABELLED, self.dtype)

    def describes(self, label: Labels) -> dict[str, int]:
        """What the sample's ``.json`` says of its label beside what the task says of the teacher's answer."""
        return {}

    def out_of_range(self, name: str, label: int) -> UserError:
        """The error of a label that is no class."""
        bound = "" if self.num_classes is None else f" and below teacher.num_classes ({self.num_classes})"
        return UserError("dataset_label_out_of_range", f"{name} is {label}; labels are at least 0{bound}")


class ClassNumbers(LabelFormat):
    """One class for each image: ``.cls`` with the number as text."""

    members = ("cls",)
    dtype = np.int64
    max_bytes = 64

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """See the base class: one number."""
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
