from hypothesis import given
from hypothesis import strategies as st

from shared.broker.reports import MetricRow
from synth_service.api.downsampling import downsample, extremes

floats = st.floats(-1e6, 1e6)


@given(st.lists(floats, max_size=300), st.integers(4, 40))
def test_few_values_stay_and_first_last_least_and_greatest_are_among_them(values: list[float], points: int) -> None:
    kept = extremes(values, points)
    assert kept == sorted(set(kept))
    assert len(kept) <= min(points, len(values))
    if values:
        assert (kept[0], kept[-1]) == (0, len(values) - 1)
        shown = [values[index] for index in kept]
        assert (min(shown), max(shown)) == (min(values), max(values))
    if len(values) <= points:
        assert len(kept) == len(values)


def row(step: int, task: str = "distillation:0", **values: float | None) -> MetricRow:
    return MetricRow(f"{step}-0", task, float(step), step, values)


def test_each_series_of_each_task_keeps_its_own_extremes() -> None:
    rows = [
        row(step, f"synthesis:{step % 2}", loss=float(step == 500), accuracy=-float(step == 701))
        for step in range(1000)
    ]
    kept = downsample(rows, 10)
    for task in ("synthesis:0", "synthesis:1"):
        for series in ("loss", "accuracy"):
            assert 2 <= sum(each.task == task and series in each.values for each in kept) <= 10
    assert row(500, "synthesis:0", loss=1.0) in [
        each._replace(values={"loss": each.values.get("loss")}) for each in kept
    ]
    assert any(each.step == 701 and each.values.get("accuracy") == -1.0 for each in kept)
    assert [each.step for each in kept] == sorted(each.step for each in kept)


def test_what_is_no_number_is_left_out_of_a_chart() -> None:
    assert downsample([row(1, loss=None), row(2, loss=1.0)], 4) == [row(2, loss=1.0)]
