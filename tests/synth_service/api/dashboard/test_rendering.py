import pytest

from synth_service.api.dashboard.rendering import (
    byte_size,
    duration,
    environment,
    moment,
    number,
    percentage,
    query,
    remaining,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (12345, "12,345"),
        (3.456, "3.46"),
        (34.56, "34.6"),
        (1234.5, "1,234"),
        (0.01234, "0.0123"),
    ],
)
def test_numbers_have_thousands_and_as_many_decimals_as_they_deserve(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_960, "1.0 MB"),
        (85e9, "85.0 GB"),
        (2e18, "2000.0 PB"),
    ],
)
def test_sizes_take_the_unit_that_keeps_them_short(value: float | None, shown: str) -> None:
    assert byte_size(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (3600, "1 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_name_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(3, "10 s"), (44, "40 s"), (200, "3 min"), (7530, "2 h 06 min")])
def test_estimates_are_no_more_exact_than_they_can_be(seconds: float, shown: str) -> None:
    assert remaining(seconds) == shown


def test_fractions_are_shown_as_percentages() -> None:
    assert percentage(0.99556) == "99.6\u202f%"


def test_times_leave_in_utc_for_the_browser_to_translate() -> None:
    assert moment(1_700_000_000.25, "exact") == (
        '<time datetime="2023-11-14T22:13:20.250+00:00" data-form="exact">14 Nov 2023, 22:13:20 UTC</time>'
    )
    assert moment(None) == "–"


def test_queries_leave_out_what_has_no_value() -> None:
    assert query(state="failed", name="a&b", after=None) == "?state=failed&name=a%26b"
    assert query(name="") == ""


def test_what_a_template_prints_is_escaped() -> None:
    assert environment.from_string("{{ name }}").render(name="<script>") == "&lt;script&gt;"
