"""The model card of a trained student: what it is, how well it does, and code that loads it.

Files tell the same in their headers (``distiller.export.described``); the card is for people, and for the hub that
shows it. Same job, same text. No torch.
"""

import json
from collections.abc import Sequence
from typing import Final

from shared.cards.markdown import TAG, card_title, in_code, job_section, markdown, table
from shared.jobs import JobRecord
from shared.specs import ExportFormat, JobSpec, StudentSpec
from shared.specs.architectures import ZOOS
from shared.storage import job_paths
from shared.tasks import describe_task

LIBRARY: Final = "fast-dfkd"

_RUNNING: Final[dict[ExportFormat, tuple[str, str]]] = {
    "torch-export": ("import torch\n", 'network = torch.export.load("{name}").module()\n'),
    "torchscript": ("import torch\n", 'network = torch.jit.load("{name}")\n'),
    "onnx": ("import onnxruntime\n", 'network = onnxruntime.InferenceSession("{name}")\n'),
}


def student_card(job: JobRecord, exports: Sequence[ExportFormat] = ()) -> str:
    """The text of the card.

    Args:
        job: it has trained a student.
        exports: formats in which the student lies beside its weights.

    Raises:
        ValueError: the job trains no student.
    """
    spec = job.parsed_spec()
    student, teacher = spec.student, spec.teacher
    if student is None:
        raise ValueError("a model card needs a job that trained a student")
    task = describe_task(teacher.task)
    title = card_title(spec, "Distilled student")
    steps = f", {spec.distillation.steps:,} steps" if spec.distillation else ""
    measured = job.measurement.metrics if job.measurement else {}
    results = [(metric.label, f"{measured[metric.name]:.4f}") for metric in task.metrics if metric.name in measured]
    sections = [
        _front_matter(task.category),
        f"# {markdown(title)}",
        f"A `{student.arch}` that was trained by a {task.made_from} alone (data-free distillation): no training data "
        "was used.",
        table(
            ("", ""),
            [
                ("Task", task.label),
                ("Student", f"`{student.arch}`, {teacher.num_classes} classes{steps}"),
                ("Teacher", f"`{teacher.arch}`"),
                ("Images", f"{'×'.join(map(str, teacher.input.shape))} (channels, height, width), values in [0, 1]"),
                ("Normalization", f"mean {_numbers(teacher.input.mean)}, std {_numbers(teacher.input.std)}"),
                ("Made by", f"job `{job.id}` of Fast-DFKD, seed {spec.seed}"),
            ],
        ),
    ]
    if results:
        sections.append("## Results\n\n" + table(("On labelled images", "share"), results))
    sections += [_loading(spec, student, exports), job_section(spec)]
    return "\n\n".join(sections) + "\n"


def _front_matter(category: str) -> str:
    """YAML for Hugging Face."""
    return f"""---
library_name: {LIBRARY}
pipeline_tag: {category}
tags:
- {TAG}
- knowledge-distillation
- safetensors
---"""


def _loading(spec: JobSpec, student: StudentSpec, exports: Sequence[ExportFormat]) -> str:
    teacher = spec.teacher
    shape = f"channels={teacher.input.channels}, height={teacher.input.height}, width={teacher.input.width}"
    module, is_elsewhere, _ = student.arch.partition(":")
    is_own_code = bool(is_elsewhere) and module not in ZOOS
    allowed = f'    allowed_factories=["{module}"],  # its code runs\n' if is_own_code else ""
    weights = f"""## Loading

Images are normalized first: `(images - mean) / std`. The weights, with `pip install 'fast-dfkd[worker]'`:

```python
from pathlib import Path

from shared.networks.building import build_network
from shared.networks.weights import load_checkpoint
from shared.specs import InputSpec, StudentSpec

network = build_network(
    StudentSpec(arch={in_code(repr(student.arch))}, kwargs={in_code(repr(dict(student.kwargs)))}),
    num_classes={teacher.num_classes},
    input=InputSpec({shape}),
    task={json.dumps(teacher.task)},
{allowed})
load_checkpoint(network, Path("student.safetensors"), field="student")
network.eval()
```"""
    programs = []
    for format in exports:
        imports, line = _RUNNING[format]
        name = job_paths.EXPORT_NAMES[format]
        programs.append(f"`{name}` runs without that package:\n\n```python\n{imports}\n{line.format(name=name)}```")
    return "\n\n".join([weights, *programs])


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
