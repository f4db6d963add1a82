"""What every measurement carries, and where it is kept.

A result is one JSON file that says on which machine, with which versions, when and by which command it was
measured. Long measurements are made of *cells*; each finished one is a file of its own under a name that
is a hash of its settings, so a measurement that was interrupted, or is asked for more, goes on with what is
missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from shared.networks.devices import choose_device
from synth_service.local.service import available_cores

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"

Record = dict[str, Any]


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON at the end")
    parser.add_argument("--quick", action="store_true", help="a short form; its results are kept apart")
    parser.add_argument("--fresh", action="store_true", help="measure again what earlier runs left")
    parser.add_argument("--threads", type=int, default=available_cores(), help="torch threads (default: all cores)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--results", type=Path, help="folder for the results (default: benchmarks/results)")
    return parser


def results_folder(options: argparse.Namespace) -> Path:
    """Where this run keeps its results: quick ones never overwrite long ones."""
    folder: Path | None = options.results
    if folder is None:
        folder = RESULTS / "quick" if options.quick else RESULTS
    return folder


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def provenance(threads: int, device: str) -> Record:
    """Machine, versions, date, commit and command."""
    chosen = choose_device(device)
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu_name(),
            "cores": available_cores(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.system(),
            "gpu": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else None,
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": threads,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


class Cells:
    """Finished cells in a folder, one file each.

    Args:
        folder: where they are.
        fresh: measure again, once each, what earlier runs measured.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self._folder = folder
        self._fresh = fresh
        self._stored: set[Path] = set()

    def find(self, settings: Mapping[str, Any]) -> Record | None:
        """The cell that was measured with exactly these settings."""
        path = self._path(settings)
        if not path.is_file() or (self._fresh and path not in self._stored):
            return None
        cell: Record = json.loads(path.read_text(encoding="utf-8"))
        return cell

    def store(self, settings: Mapping[str, Any], cell: Mapping[str, Any]) -> None:
        """Keeps a finished cell together with its settings."""
        path = self._path(settings)
        write_json(path, {"settings": settings, **cell})
        self._stored.add(path)

    def _path(self, settings: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        label = re.sub(r"[^a-z0-9]+", "-", f"{settings['label']}-seed-{settings['seed']}".lower())
        return self._folder / f"{label}-{digest}.json"


def spread(values: Sequence[float], digits: int = 6) -> Record:
    """Median, extremes and number of values."""
    return {
        "median": round(median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "count": len(values),
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header row, in columns; all but the first are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same rows for a document."""
    header, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *rest])


def finish(name: str, result: Mapping[str, Any], text: str, options: argparse.Namespace) -> None:
    """Stores a result and prints it: the table for people, or JSON as the last line."""
    path = results_folder(options) / f"{name}.json"
    write_json(path, result)
    say(f"\n{text}\n\nkept in {path}")
    if options.json:
        print(json.dumps(result), flush=True)


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", information.read_text()) if information.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Short hash, with a plus where the working tree differs from it."""
    git = shutil.which("git")
    if git is None:
        return None
    described = subprocess.run(
        [git, "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
