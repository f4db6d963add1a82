from __future__ import annotations

import pytest

from shared.tasks.quality import Verdict, judge, kappa, likely_normalization, measures_of_series

FINE = {
    "held_back_agreement": 0.9,
    "held_back_kappa": 0.88,
    "class_entropy": 0.95,
    "diversity": 0.3,
    "teacher_confidence": 0.8,
    "label_agreement": 0.9,
    "kd_loss_share": 0.2,
}


def test_a_student_that_agrees_on_images_it_never_saw_is_good() -> None:
    quality = judge(FINE)
    assert quality.verdict is Verdict.GOOD
    assert "90%" in quality.reason
    assert quality.remedy == ""
    assert quality.measures == FINE


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({"class_entropy": 0.2}, Verdict.POOR, "collapsed"),
        ({"diversity": 0.001}, Verdict.POOR, "collapsed"),
        ({"held_back_kappa": 0.3, "held_back_agreement": 0.37}, Verdict.POOR, "37%"),
        ({"held_back_kappa": 0.7, "held_back_agreement": 0.73}, Verdict.DOUBTFUL, "73%"),
        ({"held_back_kappa": 0.79, "held_back_agreement": 0.81, "batch_norm": 0.0}, Verdict.POOR, "81%"),
        ({"held_back_kappa": 0.85, "held_back_agreement": 0.87, "batch_norm": 0.0}, Verdict.DOUBTFUL, "87%"),
        ({"teacher_confidence": 0.2}, Verdict.DOUBTFUL, "20%"),
        ({"label_agreement": 0.16}, Verdict.DOUBTFUL, "16%"),
        ({"kd_loss_share": 1.1}, Verdict.DOUBTFUL, "loss ended at 110%"),
    ],
)
def test_what_is_wrong_is_said_with_a_remedy(change: dict[str, float], verdict: Verdict, words: str) -> None:
    quality = judge(FINE | change)
    assert quality.verdict is verdict
    assert words in quality.reason
    assert quality.remedy


TRAINED_ON_HALF = {"training_input_mean": -0.34, "training_input_deviation": 0.64}
"""As digits whose pixels have mean 0.33 and deviation 0.32 are, with mean 0.5 and std 0.5."""


@pytest.mark.parametrize(
    ("mean", "std", "verdict"),
    [
        (0.5, 0.5, Verdict.GOOD),
        (0.449, 0.226, Verdict.GOOD),  # wrong, but there are images of so little contrast
        (0.0, 1.0, Verdict.POOR),
        (0.5, 0.05, Verdict.DOUBTFUL),
        (-0.5, 0.5, Verdict.POOR),
    ],
)
def test_a_normalization_that_no_training_can_have_had_is_called_out(mean: float, std: float, verdict: Verdict) -> None:
    facts = {"training_pixel_mean": -0.34 * std + mean, "training_pixel_deviation": 0.64 * std}

    for is_final in (False, True):
        quality = judge(FINE | TRAINED_ON_HALF | facts, is_final=is_final)

        assert quality.verdict is verdict
        if verdict is not Verdict.GOOD:
            assert "teacher.input.mean and std" in quality.reason
            assert f"deviation of {0.64 * std:.2f}" in quality.reason
            assert "`half` fits best: mean [0.5], std [0.5]" in quality.remedy


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [(0.45, 0.25, "none"), (-0.1, 0.5, "half"), (0.0, 1.05, "imagenet")],
)
def test_the_common_normalization_that_fits_is_named(mean: float, deviation: float, expected: str) -> None:
    measures = {"training_input_mean": mean, "training_input_deviation": deviation}

    assert likely_normalization(measures) == expected


def test_of_a_teacher_that_does_not_tell_nothing_is_claimed() -> None:
    assert likely_normalization(FINE) is None


def test_what_is_known_of_the_teacher_is_found_in_any_row() -> None:
    rows = [{"bn": 1.0, "training_pixel_mean": 0.4, "batch_norm": 1.0}, {"bn": 0.5}]

    assert measures_of_series(rows) == {"training_pixel_mean": 0.4, "batch_norm": 1.0}


def test_normalization_is_the_first_suspect_of_images_that_the_teacher_does_not_know() -> None:
    assert judge(FINE | {"teacher_confidence": 0.2}).remedy.startswith("Check teacher.input first")


def test_the_worst_finding_counts() -> None:
    assert judge(FINE | {"teacher_confidence": 0.2, "class_entropy": 0.1}).verdict is Verdict.POOR


def test_a_student_that_is_not_done_is_not_judged_but_collapsed_images_are() -> None:
    assert judge(FINE | {"held_back_kappa": 0.0}, is_final=False).verdict is Verdict.GOOD
    assert judge({"class_entropy": 0.0}, is_final=False).verdict is Verdict.POOR


def test_a_student_of_which_nothing_is_known_is_not_called_good() -> None:
    assert judge({}).verdict is Verdict.DOUBTFUL
    assert judge({}, is_final=False).verdict is Verdict.GOOD


@pytest.mark.parametrize(
    ("agreement", "shares", "expected"),
    [
        (1.0, [(0.5, 0.5), (0.5, 0.5)], 1.0),
        (0.5, [(0.5, 0.5), (0.5, 0.5)], 0.0),  # as a coin
        (0.9, [(0.9, 1.0), (0.1, 0.0)], 0.0),  # always the commoner class
        (1.0, [(1.0, 1.0), (0.0, 0.0)], 0.0),  # nothing to tell apart
    ],
)
def test_kappa_is_what_is_left_beyond_chance(
    agreement: float, shares: list[tuple[float, float]], expected: float
) -> None:
    assert kappa(agreement, shares) == pytest.approx(expected)


def test_a_series_is_summed_up_by_its_later_part_and_the_loss_by_its_fall() -> None:
    rows = [{"label_agreement": value, "one_hot": 1.0} for value in (0.0, 0.0, 0.8, 1.0)]
    rows += [{"loss": value} for value in (9.0, 9.0, *[4.0] * 2, *[3.0] * 14, *[2.0] * 2)]
    assert measures_of_series(rows) == {"label_agreement": pytest.approx(0.9), "kd_loss_share": pytest.approx(0.5)}
    assert "label_agreement" not in measures_of_series(rows, targets_matter=False)
    assert measures_of_series([{"loss": None}]) == {}
