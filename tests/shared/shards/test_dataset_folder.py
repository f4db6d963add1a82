"""A finished job's folder loads with stock tools as it is, images and labels right."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shared.cards.dataset_card import dataset_card
from shared.shards.dataset_folder import remove_unlisted, write_dataset_card, write_index
from shared.shards.format import seal, stage
from shared.shards.manifest import ImageFormat, ShardManifest
from shared.shards.picture_grid import write_grid
from shared.specs import JobSpec
from shared.storage import Storage
from tests.shared.samples import batch, shard

FOLDER = "jobs/a"
BATCHES = [batch(6, channels=3, seed=1), batch(7, channels=3, seed=2)]

SPEC = JobSpec.model_validate(
    {
        "name": "My: \"first\"\njob",
        "metadata": {"owner": "not for the card"},
        "webhook": "https://example.org/?token=not-for-the-card",
        "seed": 5,
        "teacher": {
            "arch": "wrn40_2",
            "num_classes": 3,
            "checkpoint": "models/teacher.safetensors",
            "input": {"channels": 3, "height": 5, "width": 7},
        },
        "synthesis": {"method": "fast-meta", "num_images": 13, "batch_size": 7, "steps": 4},
        "distillation": None,
    }
)  # fmt: skip


def make_folder(storage: Storage, tmp_path: Path, image_format: ImageFormat = "png") -> list[ShardManifest]:
    manifests = []
    for index, samples in enumerate(BATCHES):
        path, manifest = shard(tmp_path / "local", samples, index=index, image_format=image_format)
        stage(storage, "staging", path, manifest)
        seal(storage, "staging", f"{FOLDER}/shards", manifest)
        manifests.append(manifest)
    storage.put_bytes(b"weights", f"{FOLDER}/student.safetensors")
    storage.put_bytes(b"{}", f"{FOLDER}/metrics.json")
    write_index(storage, FOLDER, manifests, name="a")
    grid = write_grid(storage, FOLDER, manifests, tmp_path / "scratch")
    write_dataset_card(storage, FOLDER, manifests, SPEC, grid=Path(grid).name)
    return manifests


def all_images() -> np.ndarray:
    return np.concatenate([samples.images for samples in BATCHES]).transpose(0, 2, 3, 1)


def all_targets() -> list[int]:
    return [int(target) for samples in BATCHES for target in samples.targets]


def found_by(script: str, folder: Path, tmp_path: Path) -> Any:
    """What a script finds in a folder, from a process of its own.

    Hugging Face reads its environment when it is imported, and stock webdataset leaves files to the
    garbage collector, which would fail some later test.
    """
    script = f"""
import glob, json, numpy as np
folder, found = {str(folder)!r}, []
{textwrap.dedent(script)}
with open({str(tmp_path / "found.json")!r}, "w") as file:
    json.dump(found, file)
"""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hugging-face"),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    return json.loads((tmp_path / "found.json").read_text())


def test_stock_webdataset_reads_pictures_and_arrays(tmp_path: Path) -> None:
    for image_format in ("png", "npy"):
        make_folder(Storage(str(tmp_path / "storage" / image_format)), tmp_path, image_format)
    script = f"""
        import webdataset
        for image_format in ("png", "npy"):
            tars = sorted(glob.glob(f"{{folder}}/{{image_format}}/{FOLDER}/shards/*.tar"))
            dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
            found.append([
                (image.tolist(), target, record["teacher_top1"])
                for image, target, record in dataset.to_tuple(image_format, "cls", "json")
            ])
    """
    pictures, arrays = found_by(script, tmp_path / "storage", tmp_path)
    np.testing.assert_array_equal(np.array([sample[0] for sample in pictures]), all_images())
    np.testing.assert_array_equal(np.array([sample[0] for sample in arrays]).transpose(0, 2, 3, 1), all_images())
    top1 = np.concatenate([batch.described["teacher_top1"] for batch in BATCHES]).tolist()
    for samples in (pictures, arrays):
        assert [sample[1] for sample in samples] == all_targets()
        assert [sample[2] for sample in samples] == top1


def test_hugging_face_datasets_reads_the_folder_both_ways(storage: Storage, tmp_path: Path) -> None:
    make_folder(storage, tmp_path)
    script = """
        from datasets import load_dataset
        for dataset in (
            load_dataset("webdataset", data_files=folder + "/shards/*.tar", split="train"),
            load_dataset(folder, split="train"),
        ):
            found.append([
                {"image": np.asarray(row["png"]).tolist(), "target": row["cls"], "record": row["json"]}
                for row in dataset
            ])
        found.append(str(dataset.features["cls"]))
    """
    by_files, by_folder, label = found_by(script, Path(storage.root) / FOLDER, tmp_path)
    assert label == "ClassLabel(names=['0', '1', '2'])"
    assert by_files == by_folder
    np.testing.assert_array_equal(np.array([row["image"] for row in by_folder]), all_images())
    assert [row["target"] for row in by_folder] == all_targets()
    assert [row["record"]["target"] for row in by_folder] == all_targets()


def test_the_index_lists_every_shard_relative_to_itself(storage: Storage, tmp_path: Path) -> None:
    manifests = make_folder(storage, tmp_path)
    index = json.loads(storage.read_bytes(f"{FOLDER}/index.json"))
    assert index["__kind__"] == "wids-shard-index-v1"
    assert index["wids_version"] == 1
    assert [(entry["url"], entry["nsamples"]) for entry in index["shardlist"]] == [
        (f"shards/{manifest.name}", manifest.images) for manifest in manifests
    ]
    for entry in index["shardlist"]:
        assert storage.size(f"{FOLDER}/{entry['url']}") == entry["filesize"]


def test_what_no_manifest_lists_is_removed(storage: Storage, tmp_path: Path) -> None:
    manifests = make_folder(storage, tmp_path)
    before = storage.list()
    path, manifest = shard(tmp_path / "zombie", BATCHES[1], index=1, attempt=0)
    stage(storage, "staging", path, manifest)
    seal(storage, "staging", f"{FOLDER}/shards", manifest)
    present = storage.list(f"{FOLDER}/shards")
    assert set(present) - set(before) == {f"{FOLDER}/shards/{name}" for name in (manifest.name, manifest.sidecar_name)}
    remove_unlisted(storage, FOLDER, manifests, present)
    assert storage.list() == before


def test_the_card_says_how_the_images_were_made(storage: Storage, tmp_path: Path) -> None:
    manifests = make_folder(storage, tmp_path)
    card = storage.read_bytes(f"{FOLDER}/README.md").decode()
    _, front, body = card.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["pretty_name"] == 'My: "first" job'
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "shards/*.tar"}]
    for fact in ("`wrn40_2`, 3 classes", "`fast-meta`, 4 steps", "| Seed | 5 |", "3×5×7", "](grid.png)"):
        assert fact in body
    assert "| 0 | 5 |\n| 1 | 4 |\n| 2 | 4 |" in body
    assert "not for the card" not in card
    assert card == dataset_card(manifests, SPEC, grid="grid.png")


def test_the_settings_in_the_card_are_the_job(storage: Storage, tmp_path: Path) -> None:
    make_folder(storage, tmp_path)
    block = storage.read_bytes(f"{FOLDER}/README.md").decode().split("```json\n")[1].split("\n```")[0]
    assert JobSpec.model_validate_json(block) == SPEC.model_copy(update={"metadata": {}, "webhook": None})


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_cards_own_loader_gives_the_channels_that_there_are(tmp_path: Path, channels: int, mode: str) -> None:
    _, manifest = shard(tmp_path / "shards", batch(3, channels=channels))
    card = dataset_card([manifest], SPEC)
    code = card.partition("```python\n")[2].partition("```")[0]
    script = f"import os; os.chdir(folder)\n{code}\nfound.append([image.mode for image, _ in dataset])"
    assert found_by(script, tmp_path, tmp_path) == [[mode] * 3]
