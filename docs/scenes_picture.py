"""Makes the picture of the scenes example: held-out scenes, the teacher's maps and a student's, by rows.

    .venv/bin/python docs/scenes_picture.py dfkd-demo/jobs/JOB/student.safetensors

The student is one of ``dfkd demo --example scenes``. Writes ``docs/images/scenes.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.networks.building import build_network
from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.weights import load_checkpoint
from shared.shards.reader import iter_samples
from shared.specs import JobSpec, NetworkSpec
from shared.tasks.base import build_task
from shared.tasks.palette import palette
from synth_service.cli.job_file import load_job_file

DOCS = Path(__file__).parent
EXAMPLE = DOCS.parent / "examples" / "scenes"
COLUMNS, MARGIN, SCALE = 10, 4, 2


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    student = parser.parse_args().student
    spec = JobSpec.model_validate(load_job_file(str(EXAMPLE / "job.yaml")))
    teacher_spec = spec.teacher
    task = build_task(teacher_spec.task, teacher_spec.num_classes, teacher_spec.ignored_label)
    shape = teacher_spec.input.shape
    samples = next(
        iter_samples([EXAMPLE / "held-out.tar"], shape, labels=task.labels, require_labels=True, any_size=True)
    )
    images = samples.images[:COLUMNS]
    inputs = Normalization(teacher_spec.input)(to_pixels(torch.from_numpy(images)))
    rows = [images[:, 0][..., None].repeat(3, -1)]
    assert spec.student is not None
    networks = ((teacher_spec.arch, EXAMPLE / "teacher.safetensors"), (spec.student.arch, student))
    for arch, path in networks:
        network = build_network(
            NetworkSpec(arch=arch), num_classes=task.num_classes, task=teacher_spec.task, input=teacher_spec.input
        )
        load_checkpoint(network, path, field=str(path))
        with torch.no_grad():
            maps = task.logits(network.eval()(inputs), inputs.shape).argmax(1).numpy()
        colors = np.frombuffer(palette(teacher_spec.ignored_label), np.uint8).reshape(-1, 3)
        rows.append(colors[maps])
    picture = Image.fromarray(_arranged(rows))
    large = picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)
    large.quantize(64).save(DOCS / "images" / "scenes.png", optimize=True)


def _arranged(rows: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows of pictures (N, H, W, 3), with white between them."""
    count, height, width = rows[0].shape[:3]
    canvas = np.full((len(rows) * (height + MARGIN) - MARGIN, count * (width + MARGIN) - MARGIN, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = row * (height + MARGIN), column * (width + MARGIN)
            canvas[top : top + height, left : left + width] = picture
    return canvas


if __name__ == "__main__":
    main()
