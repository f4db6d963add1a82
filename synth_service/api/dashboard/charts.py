"""Which charts a job has, and the class histogram. What they look like is the browser's matter.

A chart names the measured values that it shows; the browser fetches those from ``GET /jobs/{id}/metrics``, thinned
out on the server, and then only what is new. Rates and the shard lag are worked out from the rows' steps and times,
so that they too need nothing but the measured values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from shared.jobs import JobRecord
from shared.specs import METHODS, SynthesisBase
from shared.specs.synthesis import shown_terms
from shared.tasks import task_of

ChartKind = Literal["values", "rate", "lag"]
ROLES = ("synthesis", "distillation")

KD_LOSSES = {
    "kl": "KL(teacher ‖ student) at the job's temperature.",
    "l1": "Mean absolute difference of the logits.",
}

QUALITY: tuple[tuple[str, str, Literal["synthesis", "distillation"]], ...] = (
    ("held_back_agreement", "Agreement, held back", "distillation"),
    ("label_agreement", "Target seen", "synthesis"),
    ("teacher_confidence", "Teacher's confidence", "synthesis"),
)

ROWS_OF_A_PAGE = 1100
"""Rows of about 140 bytes that all charts of a page may fetch at first: half of the 300 kB a page may move."""

FEWEST_POINTS = 12
MOST_POINTS = 240
MOST_BARS = 128


class Series(BaseModel):
    """One line of a chart."""

    name: str
    """Name of the measured value, or of what is worked out."""
    label: str
    role: Literal["synthesis", "distillation"]
    color: int
    """Place in the palette, from 0."""


class Chart(BaseModel):
    """One chart of a job."""

    id: str
    title: str
    about: str
    unit: str = ""
    kind: ChartKind = "values"
    format: Literal["number", "percent"] = "number"
    series: list[Series]
    units_per_step: float = 1.0
    """What one step of the rows stands for, in the chart's unit."""
    units_of_jobs: dict[int, float] = {}
    """In a comparison: the same for each job that has the chart, by its place."""


def charts_of(job: JobRecord) -> list[Chart]:
    """The charts that a job can fill, in the order of the page."""
    charts: list[Chart] = []
    spec: dict[str, Any] = dict(job.spec)
    synthesis = spec.get("synthesis") if job.stages.synthesis else None
    distillation = spec.get("distillation") if job.stages.distillation else None
    if synthesis:
        terms = _terms(synthesis, has_student=bool(distillation))
        charts.append(
            Chart(
                id="inversion",
                title="Inversion losses",
                about="Each term at the last inner step of a shard, unweighted.",
                series=[
                    Series(name=name, label=label, role="synthesis", color=place)
                    for place, (name, label) in enumerate(terms.items())
                ],
            )
        )
    if distillation:
        charts.append(
            Chart(
                id="kd-loss",
                title="Distillation loss",
                about=KD_LOSSES.get(distillation.get("loss", "kl"), "How far the student is from the teacher."),
                series=[Series(name="loss", label="KD loss", role="distillation", color=0)],
            )
        )
        if spec.get("evaluation"):
            task = task_of(job)
            measured = [metric for metric in task.metrics if metric != task.teacher_metric]
            charts.append(
                Chart(
                    id="accuracy",
                    title="Student on held-out images",
                    about=" ".join(metric.about for metric in measured),
                    format="percent",
                    unit="%",
                    series=[
                        Series(name=metric.name, label=metric.label, role="distillation", color=place)
                        for place, metric in enumerate(measured)
                    ],
                )
            )
    if synthesis or distillation:
        charts.append(
            Chart(
                id="quality",
                title="Quality without labels",
                about="Held back: images the student is never trained on. Target: the teacher sees what an image was "
                "made for.",
                format="percent",
                unit="%",
                series=[
                    Series(name=name, label=label, role=role, color=place)
                    for place, (name, label, role) in enumerate(QUALITY)
                    if spec.get(role)
                ],
            )
        )
    if synthesis:
        charts.append(
            Chart(
                id="images",
                title="Synthesis speed",
                about="Images per second, all partitions together.",
                unit="images/s",
                kind="rate",
                units_per_step=synthesis.get("batch_size", 1),
                series=[Series(name="rate", label="Images/s", role="synthesis", color=2)],
            )
        )
    if distillation:
        charts.append(
            Chart(
                id="steps",
                title="Distillation speed",
                about="Training steps per second.",
                unit="steps/s",
                kind="rate",
                series=[Series(name="rate", label="KD steps/s", role="distillation", color=3)],
            )
        )
    if synthesis and (distillation or spec.get("external")):
        taker = "the distiller has yet to take" if distillation else "your program has yet to use up"
        charts.append(
            Chart(
                id="lag",
                title="Shard lag",
                about=f"Shards announced that {taker}.",
                unit="shards",
                kind="lag",
                units_per_step=1 / synthesis.get("batches_per_shard", 1),
                series=[Series(name="lag", label="Shard lag", role="synthesis", color=4)],
            )
        )
    return charts


def _terms(synthesis: Mapping[str, Any], *, has_student: bool) -> dict[str, str]:
    """The loss terms that the inverter reports, with names for people."""
    method = METHODS.get(synthesis.get("method", ""), SynthesisBase)
    weights = {name: synthesis[name] for name in method.term_labels if name in synthesis}
    return shown_terms(method.term_labels, weights, has_student=has_student)


def points_for(*jobs: JobRecord) -> int:
    """How many points of each series to fetch, such that all charts of a page stay within its budget."""
    series = 0
    for job in jobs:
        partitions = len(job.stages.synthesis.partitions) if job.stages.synthesis else 0
        for chart in charts_of(job):
            if chart.kind == "values":
                series += sum(partitions if each.role == "synthesis" else 1 for each in chart.series)
        series += job.stages.distillation is not None  # the learning rate
    return min(max(ROWS_OF_A_PAGE // max(series, 1), FEWEST_POINTS), MOST_POINTS)


class Bar(BaseModel):
    """One bar of the histogram: a class, or several in a row."""

    first: int
    last: int
    count: int
    place: float
    """Left edge in percent of the width."""
    width: float
    height: float
    """In percent of the tallest."""

    @property
    def label(self) -> str:
        """The class or classes."""
        return f"Class {self.first}" if self.first == self.last else f"Classes {self.first}–{self.last}"


def histogram(counts: Mapping[int, int], num_classes: int) -> list[Bar]:
    """Bars of the images of each target class; of many classes, each bar stands for several in a row.

    Args:
        counts: images by class; absent classes have none.
        num_classes: classes that the teacher tells apart.
    """
    per_bar = -(-num_classes // MOST_BARS)
    sums = [0] * -(-num_classes // per_bar)
    for target, count in counts.items():
        if 0 <= target < num_classes:
            sums[target // per_bar] += count
    tallest = max(sums, default=0) or 1
    step = 100 / len(sums)
    return [
        Bar(
            first=place * per_bar,
            last=min((place + 1) * per_bar, num_classes) - 1,
            count=count,
            place=round(place * step, 3),
            width=round(step * 0.8, 3),
            height=round(100 * count / tallest, 2),
        )
        for place, count in enumerate(sums)
    ]
