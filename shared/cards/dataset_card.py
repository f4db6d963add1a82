"""The card of a dataset: what the images are, how they were made, and code that loads them.

It lies in the dataset's folder (``shared.shards.dataset_folder``). Its front matter is for Hugging Face: the kind of
task, where the samples are, and what the columns hold.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from shared.cards.markdown import TAG, card_title, job_section, markdown, table
from shared.shards.manifest import ShardManifest
from shared.specs import JobSpec
from shared.tasks import TaskDescription, describe_task

CLASSES_LISTED = 100
CLASSES_NAMED = 10_000
"""Most classes whose names the card gives Hugging Face; each takes a line."""
SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)


def dataset_card(manifests: Sequence[ShardManifest], spec: JobSpec, *, grid: str | None = None) -> str:
    """The text of the card. Same job, same text.

    Args:
        manifests: of all shards of the job, at least one.
        spec: the job. The client's ``metadata`` and ``webhook`` are left out.
        grid: file name of the picture grid in the folder, if there is one.

    Raises:
        ValueError: the job has no synthesis.
    """
    synthesis = spec.synthesis
    if synthesis is None:
        raise ValueError("a dataset card needs a job that made a dataset")
    images = sum(manifest.images for manifest in manifests)
    title = card_title(spec, "Synthetic images")
    teacher = spec.teacher
    task = describe_task(teacher.task)
    preset = f", preset `{synthesis.preset}`" if synthesis.preset else ""
    sections = [
        _front_matter(title, images, task, manifests[0].image_format, teacher.num_classes),
        f"# {markdown(title)}",
        f"{images:,} synthetic images that were made from a trained {task.made_from} alone (data-free distillation): "
        f"no training data was used. {task.card}",
    ]
    if grid is not None:
        sections.append(f"![{task.grid_caption}]({grid})")
    sections += [
        "## How it was made\n\n"
        + table(
            ("", ""),
            [
                ("Teacher", f"`{teacher.arch}`, {teacher.num_classes} classes"),
                (
                    "Method",
                    f"`{synthesis.method}`, {synthesis.total_steps} steps per batch of {synthesis.batch_size}{preset}",
                ),
                ("Seed", str(spec.seed)),
                ("Images", f"{images:,} of {'×'.join(map(str, manifests[0].shape))} (channels, height, width)"),
                ("Files", f"{len(manifests):,} shards, {sum(manifest.bytes for manifest in manifests):,} bytes"),
                ("Format", f"`{manifests[0].image_format}`, 8 bits a channel"),
            ],
        ),
        f"## {task.counted.capitalize()} per class\n\n" + _class_counts(manifests, teacher.num_classes, task.counted),
        _loading(manifests[0], task),
        job_section(spec),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(title: str, images: int, task: TaskDescription, image_format: str, num_classes: int) -> str:
    """YAML for Hugging Face; ``configs`` keeps its loader off the manifests and the index."""
    size = next((name for limit, name in SIZE_CATEGORIES if images < limit), "n>100M")
    return f"""---
pretty_name: {json.dumps(title, ensure_ascii=False)}
task_categories:
- {task.category}
size_categories:
- {size}
tags:
- synthetic
- webdataset
- {TAG}
configs:
- config_name: default
  data_files:
  - split: train
    path: shards/*.tar
{_features(task, image_format, num_classes)}---"""


def _features(task: TaskDescription, image_format: str, num_classes: int) -> str:
    """The types of the columns, where they are known: Hugging Face would take a class for a mere number."""
    if not task.recorded or task.label_members != ("cls",) or image_format == "npy" or num_classes > CLASSES_NAMED:
        return ""
    names = "".join(f"          '{number}': '{number}'\n" for number in range(num_classes))
    record = "".join(f"    - name: {name}\n      dtype: {dtype}\n" for name, dtype in task.recorded)
    return f"""dataset_info:
  features:
  - name: {image_format}
    dtype: image
  - name: cls
    dtype:
      class_label:
        names:
{names}  - name: json
    struct:
{record}  - name: __key__
    dtype: string
  - name: __url__
    dtype: string
"""


def _class_counts(manifests: Sequence[ShardManifest], num_classes: int, counted: str) -> str:
    counts: Counter[int] = Counter()
    for manifest in manifests:
        counts.update(manifest.class_counts)
    if num_classes <= CLASSES_LISTED:
        return table(("Class", counted.capitalize()), [(str(c), f"{counts[c]:,}") for c in range(num_classes)])
    every = sorted(counts[c] for c in range(num_classes))
    median = every[len(every) // 2]
    return f"{num_classes:,} classes with {every[0]:,} to {every[-1]:,} {counted} each, {median:,} at the median."


def _loading(manifest: ShardManifest, task: TaskDescription) -> str:
    picture = "pill" if manifest.channels == 1 else "pil"  # `pil` would make three channels of one
    how = f'"{"rgb8" if manifest.image_format == "npy" else picture}"'
    label, imports = task.label_members[0], ""
    if label.endswith(".png"):  # the decoder of pictures would turn class numbers into colors
        imports = "import io\nimport numpy as np\nimport PIL.Image\n"
        how = f'wds.handle_extension("{label}", lambda data: np.array(PIL.Image.open(io.BytesIO(data)))), {how}'
    return f"""## Loading

```python
import glob
{imports}import webdataset as wds

dataset = wds.WebDataset(sorted(glob.glob("shards/*.tar")), shardshuffle=False)
dataset = dataset.decode({how}).to_tuple("{manifest.image_format}", "{label}")
```

```python
from datasets import load_dataset

dataset = load_dataset(".", split="train")  # or load_dataset("webdataset", data_files="shards/*.tar")
```"""
