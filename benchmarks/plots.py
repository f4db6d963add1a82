"""Pictures of the results, for READMEs: ``python -m benchmarks.plots``. Needs matplotlib (the ``bench`` extra).

Draws what it finds in the results folder and leaves out what was not measured. White background, so that
the pictures read the same on a light and on a dark page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from benchmarks.records import RESULTS, Record, say

STYLE: Any = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

# Colors that differ for color-blind readers too (Okabe and Ito); markers say the same again.
LOOKS: dict[str, tuple[str, str]] = {
    "Fast-2": ("#56B4E9", "o"),
    "Fast-5": ("#0072B2", "o"),
    "Fast-10": ("#1B2A6B", "o"),
    "Fast-5 sequential": ("#009E73", "^"),
    "Fast-5 no reuse": ("#CC79A7", "v"),
    "DeepInversion-100": ("#F0C000", "s"),
    "DeepInversion-500": ("#E69F00", "s"),
    "DeepInversion-2000": ("#D55E00", "s"),
}
CIFAR_LOOKS = {"default": ("#0072B2", "o"), "paper": ("#E69F00", "s"), "deepinversion": ("#D55E00", "^")}
OTHER_LOOK = ("#777777", "D")
OURS, FLOOR = "#0072B2", "#9AA5AD"


def accuracy_by_time(result: Record) -> Figure:
    """Where every method ends: accuracy over synthesis time, with the range over the seeds."""
    figure, axes = new_figure()
    for row in result["methods"]:
        color, marker = LOOKS.get(row["method"], OTHER_LOOK)
        top1, seconds = row["student_top1"], row["synthesis_seconds"]
        axes.errorbar(
            seconds["median"],
            top1["median"],
            xerr=[[seconds["median"] - seconds["min"]], [seconds["max"] - seconds["median"]]],
            yerr=[[top1["median"] - top1["min"]], [top1["max"] - top1["median"]]],
            fmt=marker,
            color=color,
            markersize=8,
            capsize=3,
            label=f"{row['method']} ({row['images']:,} images)",
        )
    mark_teacher(axes, result)
    axes.set_xscale("log")
    axes.set_xlabel("synthesis time (seconds, logarithmic)")
    axes.set_title(f"Accuracy by synthesis time, {result['kd']['steps']:,} KD steps each", loc="left")
    return with_legend(figure, axes)


def accuracy_along(result: Record, column: str, label: str, title: str) -> Figure:
    """The students along their runs; a line for each method, the median over its seeds."""
    figure, axes = new_figure()
    columns = result["curves"][0]["columns"]
    place, steps = columns.index(column), columns.index("kd_steps")
    for method in dict.fromkeys(curve["method"] for curve in result["curves"]):
        color, marker = LOOKS.get(method, OTHER_LOOK)
        curves = [curve["points"] for curve in result["curves"] if curve["method"] == method]
        # Before the first KD step every student is the same: untrained.
        trained = [points for points in zip(*curves, strict=True) if points[0][steps] > 0]
        if trained:
            points = [median_point(each, place) for each in trained]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=method)
    mark_teacher(axes, result)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_title(title, loc="left")
    return with_legend(figure, axes)


def median_point(points: Sequence[Sequence[float]], place: int) -> tuple[float, float]:
    """The median over seeds of one column and of the accuracy, which is the last."""
    middle = len(points) // 2
    return sorted(point[place] for point in points)[middle], sorted(point[-1] for point in points)[middle]


def floor_and_scaling(result: Record) -> Figure:
    """Seconds for each image, ours and the floor, as one thing at a time is changed."""
    names = {"batch": "batch size", "steps": "inner steps", "size": "image side (pixels)", "teacher": "teacher"}
    tables = {name: points for name, points in result["scaling"].items() if len(points) > 1}
    figure = Figure(figsize=(2.6 * len(tables) + 1, 3.4), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (name, points) in zip(panels, tables.items(), strict=True):
        ours = [1000 * point["round_seconds"] / point["setting"]["batch"] for point in points]
        floor = [value / point["floor_ratio"] for value, point in zip(ours, points, strict=True)]
        places = range(len(points))
        axes.bar([place - 0.2 for place in places], ours, 0.4, color=OURS, label="whole round")
        axes.bar([place + 0.2 for place in places], floor, 0.4, color=FLOOR, label="floor: convolutions alone")
        for place, value, point in zip(places, ours, points, strict=True):
            axes.annotate(f"{point['floor_ratio']:.2f}×", (place, value), ha="center", va="bottom", fontsize=8)
        axes.set_xticks(list(places), [str(point["setting"][name]) for point in points])
        axes.set_xlabel(names[name])
        axes.margins(y=0.12)
        axes.grid(False, axis="x")
        if name == "teacher":
            axes.tick_params(axis="x", labelrotation=30)
    panels[0].set_ylabel("milliseconds per image")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    headline = f"{result['images_per_second']:.1f} images/s, {result['floor_ratio']:.2f}× the floor"
    figure.suptitle(f"{headline} ({result['threads']} threads)", x=0.01, ha="left", fontsize=11)
    return figure


def decoupling(result: Record) -> Figure:
    """Wall time and accuracy of the three ways."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ways = list(result["ways"].items())[::-1]
    labels = [f"{way} ({found['threads_per_process']}+{found['threads_per_process']})" for way, found in ways]
    for axes, field in ((left, "wall_seconds"), (right, "student_top1")):
        for place, (way, found) in enumerate(ways):
            values = found[field]
            whiskers = [[values["median"] - values["min"]], [values["max"] - values["median"]]]
            color = OURS if way == "free" else FLOOR
            if field == "wall_seconds":
                axes.barh(place, values["median"], 0.6, xerr=whiskers, color=color, capsize=3)
            else:
                axes.errorbar(values["median"], place, xerr=whiskers, fmt="o", color=color, capsize=3, markersize=8)
        axes.grid(False, axis="y")
    left.set_yticks(range(len(ways)), labels)
    left.set_ylim(-0.6, len(ways) - 0.4)
    left.set_xlabel("wall time of the job (seconds)")
    right.set_xlabel("student top-1 on held-out digits")
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    seeds = ways[0][1]["wall_seconds"]["count"]
    title = f"Median and range over {seeds} {'seed' if seeds == 1 else 'seeds'}; (threads of synthesis + distillation)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def new_figure() -> tuple[Figure, Axes]:
    """One plot with room for a legend beside it."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel("student top-1 on held-out digits")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return figure, axes


def mark_teacher(axes: Axes, result: Record) -> None:
    """The teacher's accuracy as a line."""
    axes.axhline(result["teacher_top1"], color="#444444", linewidth=1, linestyle="--", label="teacher")


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """Legend to the right, plain numbers on a logarithmic axis."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def accuracy_over_job_time(result: Record) -> Figure:
    """CIFAR-10 students along the longest jobs, by time of the whole job; a panel for each pair, a line for each."""
    pairs = list(dict.fromkeys(curve["pair"] for curve in result["curves"]))
    figure = Figure(figsize=(4.6 * len(pairs) + 1, 3.8), layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for axes, pair in zip(panels, pairs, strict=True):
        curves = [curve for curve in result["curves"] if curve["pair"] == pair]
        longest = max(curve["minutes"] for curve in curves)
        for curve in curves:
            if curve["minutes"] == longest:
                color, marker = CIFAR_LOOKS[curve["method"]]
                label = curve["method"] if curve["seed"] == 0 else None
                points = [(point[0], point[-1]) for point in curve["points"]]
                axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=label)
        for row in result["rows"]:
            if (row["pair"], row["minutes"], row["method"]) == (pair, longest, "real"):
                axes.axhline(row["student_top1"]["median"], color=FLOOR, linestyle=":", label="real images")
        axes.set_title(pair, loc="left")
        axes.set_xlabel("CPU time of the whole job (seconds)")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    panels[0].set_ylabel("student top-1 on 1,000 CIFAR-10 test images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


PICTURES: dict[str, tuple[str, Callable[[Record], Figure]]] = {
    "headline": ("headline", accuracy_by_time),
    "seconds-to-accuracy": (
        "headline",
        lambda result: accuracy_along(
            result, "synthesis_seconds", "synthesis time (seconds, logarithmic)", "Accuracy along the run, by time"
        ),
    ),
    "images-to-accuracy": (
        "headline",
        lambda result: accuracy_along(
            result, "images", "synthetic images so far (logarithmic)", "Accuracy along the run, by images"
        ),
    ),
    "synthesis": ("synthesis", floor_and_scaling),
    "decoupling": ("decoupling", decoupling),
    "cifar10": ("cifar10", accuracy_over_job_time),
}


def draw(folder: Path) -> list[Path]:
    """Draws every picture whose result is in the folder, into the folder."""
    drawn = []
    with mpl.rc_context(STYLE):
        for name, (source, picture) in PICTURES.items():
            path = folder / f"{source}.json"
            if path.is_file():
                target = folder / f"{name}.png"
                picture(json.loads(path.read_text(encoding="utf-8"))).savefig(target)
                drawn.append(target)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    for path in draw(parser.parse_args(arguments).results):
        say(str(path))


if __name__ == "__main__":
    main()
