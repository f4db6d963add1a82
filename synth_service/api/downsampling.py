"""Fewer rows of measured values, such that a chart of them looks like one of all.

Each series of each task is cut into buckets of equally many rows, of which the least and the greatest value
stay: a spike of one row is seen at any width, which averages and every n-th value would hide. The first and the
last row of a series always stay.
"""

from collections import defaultdict
from collections.abc import Sequence

from shared.broker.reports import MetricRow

SMALLEST = 4
"""First, last, and one bucket."""


def downsample(rows: Sequence[MetricRow], points: int) -> list[MetricRow]:
    """Rows in their order, each with only those of its values that were chosen.

    Args:
        rows: of one job, oldest first.
        points: most values of each task and series, at least ``SMALLEST``.
    """
    series: defaultdict[tuple[str, str], tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for place, row in enumerate(rows):
        for name, value in row.values.items():
            if value is not None:
                places, values = series[row.task, name]
                places.append(place)
                values.append(value)
    chosen: defaultdict[int, list[str]] = defaultdict(list)
    for (_, name), (places, values) in series.items():
        for index in extremes(values, points):
            chosen[places[index]].append(name)
    return [
        row._replace(values={name: row.values[name] for name in chosen[place]})
        for place, row in enumerate(rows)
        if place in chosen
    ]


def extremes(values: Sequence[float], points: int) -> list[int]:
    """Indices of at most ``points`` values, in order: first, last, least and greatest of each bucket between."""
    count = len(values)
    if count <= points:
        return list(range(count))
    buckets = (points - 2) // 2
    found = {0, count - 1}
    for bucket in range(buckets):
        start, end = 1 + (count - 2) * bucket // buckets, 1 + (count - 2) * (bucket + 1) // buckets
        within = values[start:end]
        found.add(start + within.index(min(within)))
        found.add(start + within.index(max(within)))
    return sorted(found)
