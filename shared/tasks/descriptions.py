"""Which tasks there are, what they measure and how that is called: all that people see of a task. No torch.

Another package adds a task with an entry point ``fast_dfkd.tasks`` that leads to a ``TaskDescription``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from shared.plugins import plugins

if TYPE_CHECKING:
    from shared.jobs import JobRecord


@dataclass(frozen=True)
class Metric:
    """A number in [0, 1] that an evaluation gives."""

    name: str
    """As in results, events, charts and Prometheus, such as ``student_top1``."""
    label: str
    about: str


@dataclass(frozen=True)
class TaskDescription:
    """A task, told without importing what computes it."""

    name: str
    """What ``teacher.task`` says."""
    label: str
    about: str
    implementation: str
    """``module:class`` of the ``shared.tasks.base.Task``; imported by workers alone."""
    labels: str
    """``module:class`` of the ``shared.tasks.labels.LabelFormat``; it imports no torch."""
    metrics: tuple[Metric, ...]
    """Of an evaluation, in the order in which people want them; the first is the headline, the student's."""
    headline: str
    """Short name of the headline metric where there is little room, such as "top-1"."""
    made_from: str
    """What the teacher is, for the dataset card: "classifier"."""
    category: str
    """Hugging Face's ``task_categories``."""
    counted: str
    """What a class has many of: "images" where each has one class, "pixels" where each pixel has."""
    card: str
    """What the dataset card says of a sample's members."""
    grid_caption: str
    """What the picture grid shows."""
    label_members: tuple[str, ...]
    """Extensions of the members that carry a sample's label in a shard."""
    recorded: tuple[tuple[str, str], ...] = ()
    """Members of a sample's ``.json`` in their order, each with Hugging Face's name of its type. With them, the dataset
    card gives every column a type, and the classes their names."""
    synthesis_defaults: tuple[tuple[str, Any], ...] = ()
    """Fields of ``synthesis`` that are otherwise for this task when the client left them out."""
    distillation_defaults: tuple[tuple[str, Any], ...] = ()
    """The same of ``distillation``."""

    @property
    def headline_metric(self) -> Metric:
        """The student's number that stands for all."""
        return self.metrics[0]

    @property
    def agreement_metric(self) -> Metric:
        """How often student and teacher say the same."""
        return next(metric for metric in self.metrics if metric.name == "agreement")

    @property
    def teacher_metric(self) -> Metric:
        """The teacher's own headline number, to compare the student's with."""
        return next(metric for metric in self.metrics if metric.name.startswith("teacher_"))


CLASSIFICATION: Final = TaskDescription(
    name="classification",
    label="Image classification",
    about="One class for each image.",
    implementation="shared.tasks.classification:Classification",
    labels="shared.tasks.labels:ClassNumbers",
    metrics=(
        Metric("student_top1", "Student top-1", "Share of the labeled images whose class the student names."),
        Metric("teacher_top1", "Teacher top-1", "The same of the teacher."),
        Metric(
            "agreement",
            "Agreement with the teacher",
            "Share of images on which student and teacher name the same class.",
        ),
    ),
    headline="top-1",
    made_from="classifier",
    category="image-classification",
    counted="images",
    card="`.cls` is the class that an image was made for; `.json` holds the class that the teacher sees in it and how "
    "sure it is.",
    grid_caption="Synthetic images by class, from early to late",
    label_members=("cls",),
    recorded=(
        ("round", "int64"),
        ("student_version", "int64"),
        ("target", "int64"),
        ("teacher_confidence", "float64"),
        ("teacher_top1", "int64"),
    ),
)

SEMANTIC_SEGMENTATION: Final = TaskDescription(
    name="semantic-segmentation",
    label="Semantic segmentation",
    about="One class for each pixel.",
    implementation="shared.tasks.segmentation:SemanticSegmentation",
    labels="shared.tasks.labels:ClassMaps",
    metrics=(
        Metric(
            "student_miou", "Student mIoU", "Mean over classes of intersection over union, over all labeled pixels."
        ),
        Metric("teacher_miou", "Teacher mIoU", "The same of the teacher."),
        Metric("agreement", "Agreement with the teacher", "Share of pixels whose class both name alike."),
        Metric("student_pixel_accuracy", "Student pixel accuracy", "Share of labeled pixels whose class is right."),
    ),
    headline="mIoU",
    made_from="segmentation network",
    category="image-segmentation",
    counted="pixels",
    card="`.seg.png` is the teacher's own map of an image: the value of each pixel is its class, the palette is for "
    "people. `.json` holds how many classes there are, which has most pixels, and how sure the teacher is. No maps "
    "were asked for: classes are balanced by the share of their pixels, as far as the teacher's images allow.",
    grid_caption="Synthetic images with the teacher's maps, from early to late; a row for each class that stands out",
    label_members=("seg.png",),
    synthesis_defaults=(("generator", "dcgan"), ("balance", 1.0)),
    distillation_defaults=(
        # Most of an image drawn by formula is background to the teacher.
        ("procedural_share", 0.0),
        # Most pixels are easy, so that the mean over all has small gradients, which AdamW makes up for.
        ("optimizer", "adamw"),
        ("learning_rate", 0.01),
        ("weight_decay", 1e-4),
    ),
)

OWN_TASKS: Final = (CLASSIFICATION, SEMANTIC_SEGMENTATION)

TASK_NAMES: Final = tuple(dict.fromkeys([*(task.name for task in OWN_TASKS), *plugins("fast_dfkd.tasks")]))
"""What ``teacher.task`` may say."""


@cache
def describe_task(name: str) -> TaskDescription:
    """The description of a task.

    Raises:
        ValueError: there is no such task, or what a package brings under the name is no description.
    """
    for task in OWN_TASKS:
        if task.name == name:
            return task
    entry = plugins("fast_dfkd.tasks").get(name)
    if entry is None:
        raise ValueError(f"there is no task `{name}`; use one of {', '.join(TASK_NAMES)}")
    found = entry.load()
    if not isinstance(found, TaskDescription) or found.name != name:
        raise ValueError(f"the entry point `{name}` of fast_dfkd.tasks leads to {found!r}, not to its TaskDescription")
    return found


def task_of(job: JobRecord) -> TaskDescription:
    """The task of a job's networks. Of a job whose spec is not understood any more, classification."""
    teacher = job.spec.get("teacher")
    name = teacher.get("task") if isinstance(teacher, dict) else None
    return describe_task(name) if name in TASK_NAMES and isinstance(name, str) else CLASSIFICATION
