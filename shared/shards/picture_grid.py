"""A picture grid: a row of small images for each class, so that a person sees at a glance what was made."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shared.shards.image_codec import Pixels, to_picture
from shared.shards.manifest import ShardManifest
from shared.shards.reader import CLASS_NUMBERS, iter_samples
from shared.storage import Storage
from shared.tasks.labels import LabelFormat

GRID_NAME = "grid.png"
SMALLEST_TILE = 48
LARGEST_TILE = 128
GAP = 4
LABEL_WIDTH = 40
SHARDS_LOOKED_AT = 10


def picture_grid(
    images: Pixels, targets: NDArray[np.integer], *, columns: int = 10, max_rows: int = 20, scale: int | None = None
) -> bytes:
    """Draw a grid: the images of each class in a row with its number in front, white gaps between them.

    Where classes have so few images that several fit into a row, they stand beside each other.

    Args:
        images: (N, C, H, W), N ≥ 1. Of other than 1 or 3 channels the first three are shown as colors, or
            the first one in gray.
        targets: (N,).
        columns: images in a row, spread evenly over those of the class in the order given.
        max_rows: of more classes than find a place, some are shown, spread evenly.
        scale: pixels are repeated so many times each way; by default such that small images are readable.
            Large ones are shrunk.

    Returns:
        The PNG; same images, same bytes.
    """
    height, width = images.shape[2:]
    scale = scale or max(1, math.ceil(SMALLEST_TILE / max(height, width)))
    shrink = min(1.0, LARGEST_TILE / (max(height, width) * scale))
    tile = (max(1, round(width * scale * shrink)), max(1, round(height * scale * shrink)))
    classes, counts = np.unique(targets, return_counts=True)
    per_class = min(columns, int(counts.max()))
    # Classes of few images each stand beside each other; one below the other they would leave the right blank.
    beside = min(columns // per_class, len(classes))
    group = LABEL_WIDTH + per_class * (tile[0] + GAP)
    chosen = _spread(classes, max_rows * beside)
    color = "RGB" if images.shape[1] >= 3 else "L"
    size = (beside * group + GAP, math.ceil(len(chosen) / beside) * (tile[1] + GAP) + GAP)
    canvas = Image.new(color, size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default_imagefont()  # a bitmap: the same on every machine
    for place, target in enumerate(chosen):
        row, left = place // beside, place % beside * group
        top = GAP + row * (tile[1] + GAP)
        draw.text((left + GAP, top + tile[1] // 2 - 6), str(target), fill="black", font=font)
        for column, image in enumerate(_spread(np.flatnonzero(targets == target), per_class)):
            shown = images[image][:3] if color == "RGB" else images[image][:1]
            picture = to_picture(shown).resize(
                tile, Image.Resampling.NEAREST if shrink == 1.0 else Image.Resampling.BOX
            )
            canvas.paste(picture, (left + LABEL_WIDTH + GAP + column * (tile[0] + GAP), top))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_grid(
    storage: Storage,
    folder: str,
    manifests: Sequence[ShardManifest],
    scratch: Path,
    *,
    columns: int = 10,
    labels: LabelFormat = CLASS_NUMBERS,
) -> str:
    """Draw the grid of a job's shards into its output folder; left to right is from early to late.

    Args:
        storage: where the job's folder is.
        folder: output folder, with the shards in ``shards/``.
        manifests: at least one, of one image shape.
        scratch: local folder for copies of remote shards.
        columns: images in a row.
        labels: by which the images are sorted, and which are shown beside them where they are pictures.

    Returns:
        Name of the PNG in the storage.
    """
    images: list[Pixels] = []
    targets: list[int] = []
    looked_at = _spread(np.arange(len(manifests)), SHARDS_LOOKED_AT)
    per_shard = math.ceil(columns / len(looked_at))
    for position in looked_at:
        manifest = manifests[position]
        name = f"{folder}/shards/{manifest.name}"
        with storage.fetched(name, scratch) as path:
            taken: defaultdict[int, int] = defaultdict(int)
            for batch in iter_samples([path], manifest.shape, batch_size=256, labels=labels):
                rows = labels.rows(batch.targets).tolist()
                for image, label, target in zip(batch.images, batch.targets, rows, strict=True):
                    if taken[target] < per_shard:
                        taken[target] += 1
                        images.append(labels.picture(image, label).copy())
                        targets.append(target)
                if all(taken[target] >= min(per_shard, count) for target, count in manifest.class_counts.items()):
                    break
    grid_name = f"{folder}/{GRID_NAME}"
    storage.put_bytes(picture_grid(np.stack(images), np.array(targets), columns=columns), grid_name)
    return grid_name


def _spread(values: NDArray[np.integer], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spread, first and last included."""
    if len(values) <= count:
        return [int(value) for value in values]
    return [int(value) for value in values[np.linspace(0, len(values) - 1, count).round().astype(int)]]
