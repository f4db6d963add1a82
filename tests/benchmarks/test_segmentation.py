from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.segmentation import INPUT, METHODS_COMPARED, crops, samples_of
from shared.specs import METHODS, DistillationSpec


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"camvid-train\.tar is missing; name the folder of real data with --data"):
        samples_of(tmp_path, "train")


def test_crops_keep_pixels_and_labels_together() -> None:
    numbers = torch.arange(120 * 160).remainder(251).to(torch.uint8).view(1, 1, 120, 160)
    images = numbers.expand(3, 3, -1, -1)
    cut, maps = crops(images, images[:, 0].long(), 4, torch.Generator().manual_seed(0))
    assert cut.shape == (4, 3, INPUT.height, INPUT.width)
    assert torch.equal(cut[:, 0].long(), maps)


@pytest.mark.parametrize("label", METHODS_COMPARED)
def test_the_settings_compared_are_valid(label: str) -> None:
    method = METHODS_COMPARED[label]
    spec = METHODS[method["synthesis"]["method"]].model_validate({"num_images": 16, **method["synthesis"]})
    assert spec.batch_size <= method["pool"]
    DistillationSpec.model_validate({**method["distillation"], "steps": 5})
    assert method["steps"] % method["batches"] == 0
