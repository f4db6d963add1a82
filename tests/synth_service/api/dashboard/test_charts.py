from typing import Any

import pytest

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.specs import JobSpec
from synth_service.api.dashboard.charts import FEWEST_POINTS, MOST_BARS, MOST_POINTS, charts_of, histogram, points_for


@pytest.fixture
def made(broker: Broker, written: dict[str, Any]) -> Any:
    def make(**changes: Any) -> JobRecord:
        return broker.jobs.create(JobSpec.model_validate({**written, **changes}))

    return make


def shown(job: JobRecord) -> dict[str, list[str]]:
    return {chart.id: [series.name for series in chart.series] for chart in charts_of(job)}


def test_a_whole_job_has_every_chart(made: Any) -> None:
    assert shown(made(evaluation={"shards": "held-out.tar"})) == {
        "inversion": ["one_hot", "bn", "adversarial"],
        "kd-loss": ["loss"],
        "accuracy": ["student_top1", "agreement"],
        "quality": ["held_back_agreement", "label_agreement", "teacher_confidence"],
        "images": ["rate"],
        "steps": ["rate"],
        "lag": ["lag"],
    }


def test_terms_that_are_off_and_halves_that_are_missing_have_no_chart(made: Any) -> None:
    only_images = {"student": None, "distillation": None}
    assert shown(made(**only_images, synthesis={"num_images": 8, "batch_size": 4, "bn": 0})) == {
        "inversion": ["one_hot"],
        "quality": ["label_agreement", "teacher_confidence"],
        "images": ["rate"],
    }
    only_student = {"shards": "data/{000..009}.tar", "synthesis": None, "distillation": {"steps": 10}}
    assert shown(made(**only_student)) == {
        "kd-loss": ["loss"],
        "quality": ["held_back_agreement"],
        "steps": ["rate"],
    }


def test_deepinversion_has_its_own_terms(made: Any) -> None:
    job = made(synthesis={"method": "deepinversion", "num_images": 8, "batch_size": 4})
    assert shown(job)["inversion"] == ["one_hot", "bn", "adversarial", "total_variation", "l2"]


def test_rates_and_lag_know_what_a_step_stands_for(made: Any) -> None:
    job = made(
        synthesis={"num_images": 64, "batch_size": 4, "batches_per_shard": 2},
        distillation={"steps": 10, "warmup_batches": 0},
    )
    units = {chart.id: chart.units_per_step for chart in charts_of(job)}
    assert (units["images"], units["steps"], units["lag"]) == (4, 1, 0.5)


def test_every_line_of_a_chart_has_a_color_of_its_own(made: Any) -> None:
    for chart in charts_of(made(evaluation={"shards": "held-out.tar"})):
        assert len({series.color for series in chart.series}) == len(chart.series)


def test_many_partitions_or_jobs_get_fewer_points_each(made: Any) -> None:
    one = made()
    many = made(synthesis={"num_images": 200, "batch_size": 2, "partitions": 100})
    assert points_for(one) <= MOST_POINTS
    assert points_for(one, one, one) < points_for(one)
    assert points_for(many) == FEWEST_POINTS


def test_a_histogram_has_a_bar_for_each_class_the_empty_ones_too() -> None:
    bars = histogram({0: 10, 2: 5}, 3)
    assert [(bar.label, bar.count, bar.height) for bar in bars] == [
        ("Class 0", 10, 100),
        ("Class 1", 0, 0),
        ("Class 2", 5, 50),
    ]


@pytest.mark.parametrize("num_classes", [2, 128, 129, 1000, 100_000])
def test_bars_of_many_classes_stand_for_all_of_them(num_classes: int) -> None:
    bars = histogram(dict.fromkeys(range(num_classes), 1), num_classes)
    assert len(bars) <= MOST_BARS
    assert sum(bar.count for bar in bars) == num_classes
    assert (bars[0].first, bars[-1].last) == (0, num_classes - 1)
    assert bars[-1].place + bars[-1].width <= 100


def test_counts_of_classes_that_there_are_not_are_left_out() -> None:
    assert sum(bar.count for bar in histogram({0: 1, 7: 1, -1: 1}, 3)) == 1


def test_an_empty_histogram_is_flat() -> None:
    assert [bar.height for bar in histogram({}, 2)] == [0, 0]
