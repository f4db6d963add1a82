"""A folder of label maps loads with stock tools, by the words of its own dataset card."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shared.cards.dataset_card import dataset_card
from shared.shards.format import SampleBatch, write_shard
from shared.shards.manifest import ShardManifest
from shared.specs import JobSpec
from shared.tasks.labels import ClassMaps
from tests.shared.shards.test_dataset_folder import found_by

LABELS = ClassMaps(4, 255)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 6), dtype=np.uint8)
MAPS = np.random.default_rng(1).integers(0, 4, (5, 8, 6)).astype(np.uint8)
SPEC = JobSpec.model_validate(
    {
        "teacher": {
            "task": "semantic-segmentation",
            "arch": "deeplab_tiny",
            "num_classes": 4,
            "checkpoint": "t",
            "input": {"height": 8, "width": 6},
        },
        "synthesis": {"num_images": 5, "batch_size": 5, "augmentation": {"crop_padding": 2}},
        "distillation": None,
    }
)


@pytest.fixture
def manifest(tmp_path: Path) -> ShardManifest:
    described = {"teacher_confidence": np.ones(5, np.float32)}
    _, manifest = write_shard(
        tmp_path / "job" / "shards",
        [SampleBatch(IMAGES, MAPS, described, 1, 0)],
        job="job-1",
        partition=0,
        index=0,
        attempt=1,
        first_image=0,
        image_format="png",
        created_at=0,
        labels=LABELS,
    )
    return manifest


def test_the_cards_own_lines_load_images_and_class_numbers(tmp_path: Path, manifest: ShardManifest) -> None:
    card = dataset_card([manifest], SPEC)
    (tmp_path / "job" / "README.md").write_text(card)
    loading = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "webdataset" in block)
    script = f"import os; os.chdir(folder)\n{loading}\nfor image, label in dataset:\n"
    script += "    found.append([np.asarray(image).tolist(), label.tolist()])\n"
    samples = found_by(script, tmp_path / "job", tmp_path)
    np.testing.assert_array_equal(np.array([label for _, label in samples]), MAPS)
    assert len(samples) == len(IMAGES)
    assert "## Pixels per class" in card
    assert "- image-segmentation" in card


def test_hugging_face_datasets_keeps_the_class_numbers(tmp_path: Path, manifest: ShardManifest) -> None:
    script = """
        from datasets import load_dataset
        dataset = load_dataset("webdataset", data_files=folder + "/shards/*.tar", split="train")
        for row in dataset:
            found.append(np.asarray(row["seg.png"]).tolist())
    """
    np.testing.assert_array_equal(np.array(found_by(script, tmp_path / "job", tmp_path)), MAPS)
