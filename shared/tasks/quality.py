"""Whether a job's images and its student are any good, told without a single labelled image.

The measures come from images that the student is never trained on and from what the workers report anyway. How well
they predict the accuracy on real images, and where the thresholds come from, is in ``docs/experiments.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, Field

from shared.specs import JobSpec
from shared.specs.normalizations import NORMALIZATIONS


class Verdict(StrEnum):
    """What to expect of the student on real images."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    POOR = "poor"


class Quality(BaseModel):
    """A verdict, why, and what to do about it."""

    verdict: Verdict
    reason: str
    remedy: str = Field("", description="Empty where nothing needs to be done.")
    measures: dict[str, float] = Field(default_factory=dict, description="What the verdict rests on, by name.")


COLLAPSED_ENTROPY: Final = 0.5
COLLAPSED_DIVERSITY: Final = 0.02
UNSURE_CONFIDENCE: Final = 0.35
UNSEEN_TARGETS: Final = 0.3
POOR_AGREEMENT: Final = 0.66
"""Kappa; with ten classes 70 % agreement. Below, students were under half of what real images give."""

GOOD_AGREEMENT: Final = 0.78
"""Kappa; with ten classes 80 % agreement. Above, students were at 0.87 and more of it."""

POOR_WITHOUT_STATISTICS, GOOD_WITHOUT_STATISTICS = 0.8, 0.9
"""The same for a teacher without BatchNorm. Nothing ties its images to the training data, so that a student may agree
on them and know nothing of real ones."""

STALLED_LOSS: Final = 0.8

LEAST_PIXEL, MOST_PIXEL, MOST_PIXEL_DEVIATION, LEAST_PIXEL_DEVIATION = -0.15, 1.15, 0.6, 0.07
"""What a training's pixels, which lie from 0 to 1 and deviate by 0.5 at most, are estimated to have had. The estimate
was within 0.07 and a fifth for networks whose training data are known."""

PROPOSED: Final = ("none", "half", "imagenet")
"""Of ``NORMALIZATIONS``, those that tell apart; the others are near ImageNet's."""

USUAL_PIXELS: Final = (0.45, 0.27)
"""Mean and deviation of pixels in usual collections."""

TEACHER_FACTS: Final = (
    "batch_norm",
    "training_input_mean",
    "training_input_deviation",
    "training_pixel_mean",
    "training_pixel_deviation",
)
"""Of ``shared.networks.training_inputs.facts_of``."""

NORMALIZATION_FIRST: Final = (
    "Check teacher.input first: mean and std must be those that the teacher was trained with, and so must the size. "
)


def judge(measures: Mapping[str, float], *, is_final: bool = True) -> Quality:
    """The verdict on a job.

    Args:
        measures: those of ``MEASURES`` that are known.
        is_final: the student is done; before, only what no further training mends counts against it.
    """
    findings = [*_of_teacher(measures), *_of_images(measures), *(_of_student(measures) if is_final else ())]
    worst = max(findings, key=lambda each: list(Verdict).index(each.verdict), default=None)
    if worst is not None:
        return worst.model_copy(update={"measures": dict(measures)})
    if is_final and "held_back_agreement" in measures:
        share = f"{measures['held_back_agreement']:.0%}"
        reason = f"The student says what the teacher says on {share} of the images that it was never trained on."
    else:
        reason = "Nothing speaks against the images so far."
    return Quality(verdict=Verdict.GOOD, reason=reason, measures=dict(measures))


def _of_teacher(measures: Mapping[str, float]) -> Iterable[Quality]:
    """What its first BatchNorm layer tells of the normalization (``shared.networks.training_inputs``)."""
    mean, deviation = measures.get("training_pixel_mean"), measures.get("training_pixel_deviation")
    if mean is None or deviation is None:
        return
    said = (
        f"By teacher.input.mean and std, the pixels of the teacher's training had a mean of {mean:.2f} and a standard "
        f"deviation of {deviation:.2f}, as its first BatchNorm layer remembers them"
    )
    remedy = "Use the mean and std that the teacher was trained with."
    if (likely := likely_normalization(measures)) is not None:
        mean_of, std_of = (", ".join(f"{value:g}" for value in values) for values in NORMALIZATIONS[likely])
        remedy = (
            f"Use the mean and std that the teacher was trained with; of the common ones, `{likely}` fits best: "
            f"mean [{mean_of}], std [{std_of}]."
        )
    if not LEAST_PIXEL <= mean <= MOST_PIXEL or deviation > MOST_PIXEL_DEVIATION:
        reason = f"{said}. There are no such images: pixels lie between 0 and 1."
        yield Quality(verdict=Verdict.POOR, reason=reason, remedy=remedy)
    elif deviation < LEAST_PIXEL_DEVIATION:
        reason = f"{said}. Hardly any images have so little contrast."
        yield Quality(verdict=Verdict.DOUBTFUL, reason=reason, remedy=remedy)


def likely_normalization(measures: Mapping[str, float]) -> str | None:
    """The name of the common normalization that gives the training's pixels the most usual mean and deviation."""
    if "training_input_mean" not in measures or "training_input_deviation" not in measures:
        return None
    center, spread = measures["training_input_mean"], max(measures["training_input_deviation"], 1e-6)

    def strangeness(name: str) -> float:
        mean, std = (sum(values) / len(values) for values in NORMALIZATIONS[name])
        usual_mean, usual_deviation = USUAL_PIXELS
        return abs(center * std + mean - usual_mean) + abs(math.log(spread * std / usual_deviation))

    return min(PROPOSED, key=strangeness)


def _of_images(measures: Mapping[str, float]) -> Iterable[Quality]:
    entropy, diversity = measures.get("class_entropy", 1.0), measures.get("diversity", 1.0)
    if entropy < COLLAPSED_ENTROPY or diversity < COLLAPSED_DIVERSITY:
        seen = "the same class in almost all images" if entropy < COLLAPSED_ENTROPY else "almost the same image"
        yield Quality(
            verdict=Verdict.POOR,
            reason=f"The teacher sees {seen}: the generator has collapsed.",
            remedy=NORMALIZATION_FIRST + "If they are right, lower synthesis.adversarial, or raise synthesis.balance.",
        )
    if measures.get("teacher_confidence", 1.0) < UNSURE_CONFIDENCE:
        yield Quality(
            verdict=Verdict.DOUBTFUL,
            reason=f"The teacher gives its own class only {measures['teacher_confidence']:.0%} in images made for it.",
            remedy=NORMALIZATION_FIRST + "If they are right, raise synthesis.one_hot or synthesis.steps.",
        )
    if measures.get("label_agreement", 1.0) < UNSEEN_TARGETS:
        yield Quality(
            verdict=Verdict.DOUBTFUL,
            reason=f"The teacher sees what an image was made for in {measures['label_agreement']:.0%} of them.",
            remedy=NORMALIZATION_FIRST + "If they are right, raise synthesis.one_hot, or lower synthesis.bn.",
        )


def _of_student(measures: Mapping[str, float]) -> Iterable[Quality]:
    fell = measures.get("kd_loss_share")
    agreement = measures.get("held_back_kappa")
    if agreement is None:
        yield Quality(
            verdict=Verdict.DOUBTFUL,
            reason="There are too few images to hold back enough of them, so nobody can tell how good the student is.",
            remedy="Make more images (synthesis.num_images).",
        )
    is_tied = measures.get("batch_norm", 1.0) > 0
    poor = POOR_AGREEMENT if is_tied else POOR_WITHOUT_STATISTICS
    if agreement is not None and agreement < (GOOD_AGREEMENT if is_tied else GOOD_WITHOUT_STATISTICS):
        share = f"{measures.get('held_back_agreement', agreement):.0%}"
        yield Quality(
            verdict=Verdict.POOR if agreement < poor else Verdict.DOUBTFUL,
            reason=f"The student says what the teacher says on only {share} of the images it was never trained on.",
            remedy=_more_of_what(fell),
        )
    elif fell is not None and fell > STALLED_LOSS:
        yield Quality(
            verdict=Verdict.DOUBTFUL,
            reason=f"The distillation loss ended at {fell:.0%} of what it was after the warm-up.",
            remedy=_more_of_what(fell),
        )


def _more_of_what(fell: float | None) -> str:
    if fell is not None and fell > STALLED_LOSS:
        return (
            "The distillation loss hardly fell: lower distillation.learning_rate, or give it more distillation.steps; "
            "if neither helps, the student is too small."
        )
    return "Give it more distillation.steps, then more synthesis.num_images, then a preset of more steps (fast-10)."


def kappa(agreement: float, shares: Sequence[tuple[float, float]]) -> float:
    """Agreement beyond chance: 0 where two that answer at random agree as often, 1 where they always do.

    A share of equal answers means little where there are two classes, or nearly all images are of one.

    Args:
        agreement: share of equal answers.
        shares: of each class, how often each of the two answers it.
    """
    chance = sum(one * other for one, other in shares)
    return (agreement - chance) / (1 - chance) if chance < 1 else 0.0


def measures_of_series(rows: Iterable[Mapping[str, float | None]], *, targets_matter: bool = True) -> dict[str, float]:
    """What the workers' reports tell.

    ``label_agreement`` and ``teacher_confidence`` over the second half of what was made, when the generator had
    learned something, ``kd_loss_share``: the last tenth of the distillation loss as a share of the second tenth, and
    what is known of the teacher.

    Args:
        rows: values by name, oldest first.
        targets_matter: images were to show their target; where targets were never dealt out, few do, and it is no harm.
    """
    series: dict[str, list[float]] = {"label_agreement": [], "teacher_confidence": [], "loss": []}
    facts: dict[str, float] = {}
    for values in rows:
        facts |= {name: value for name in TEACHER_FACTS if (value := values.get(name)) is not None}
        for name, found in series.items():
            value = values.get(name)
            if value is not None:
                found.append(value)
    measures = {name: _mean(found[len(found) // 2 :]) for name, found in series.items() if found and name != "loss"}
    if not targets_matter:
        measures.pop("label_agreement", None)
    losses, tenth = series["loss"], len(series["loss"]) // 10
    if tenth and (start := _mean(losses[tenth : 2 * tenth])) > 0:
        measures["kd_loss_share"] = _mean(losses[-tenth:]) / start
    return measures | facts


def measures_of_job(spec: JobSpec, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """``measures_of_series`` of a job's rows, as the broker has them."""
    targets_matter = getattr(spec.synthesis, "match_targets", True)
    return measures_of_series((row["values"] for row in rows), targets_matter=targets_matter)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
