"""The output folder of a real job, read by the tools that people have: webdataset and Hugging Face datasets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.jobs import State
from shared.shards.format import read_shard
from shared.storage import job_paths
from tests.e2e.conftest import digits_fields
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

WEBDATASET = """
import glob, json, sys
import numpy as np, webdataset
dataset = webdataset.WebDataset(sorted(glob.glob(sys.argv[1] + "/shards/*.tar")), shardshuffle=False)
samples = [(np.asarray(image.convert("L")).astype(int).sum().item(), label) for image, label in
           dataset.decode("pil").to_tuple("png", "cls")]
print(json.dumps(samples))
"""
HUGGING_FACE = """
import json, sys
import numpy as np
from datasets import load_dataset
dataset = load_dataset(sys.argv[1], split="train")
samples = [(np.asarray(row["png"]).astype(int).sum().item(), row["cls"]) for row in dataset]
print(json.dumps(samples))
"""


@pytest.fixture(scope="module")
def made(service: Service) -> tuple[Path, list[tuple[int, int]]]:
    """Output folder of a finished dataset-only job and what is in it: (sum of pixels, class) of each image."""
    fields: dict[str, Any] = {**digits_fields(), "distillation": None, "evaluation": None, "student": None}
    job_id = service.submit(fields)
    record = service.wait_until_final(job_id)
    assert record.state is State.SUCCEEDED, record.error
    samples: list[tuple[int, int]] = []
    for manifest in sorted(service.broker.shards.manifests(job_id), key=lambda manifest: manifest.name):
        path = service.storage.local_path(f"{job_paths.shards(job_id)}/{manifest.name}")
        assert path is not None
        shard = read_shard(path, manifest)
        samples += [
            (int(image.astype(int).sum()), int(target))
            for image, target in zip(shard.images, shard.targets, strict=True)
        ]
    folder = service.storage.local_path(job_paths.folder(job_id))
    assert folder is not None
    return folder, samples


@pytest.mark.parametrize("program", [WEBDATASET, HUGGING_FACE], ids=["webdataset", "datasets"])
def test_a_stock_reader_gives_the_images_and_labels(
    made: tuple[Path, list[tuple[int, int]]], program: str, tmp_path: Path
) -> None:
    folder, samples = made
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, env=environment, timeout=120
    )

    assert done.returncode == 0, done.stderr
    found = [tuple(sample) for sample in json.loads(done.stdout.splitlines()[-1])]
    assert np.array(found).shape == (512, 2)
    assert found == samples
