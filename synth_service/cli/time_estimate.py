"""``dfkd estimate``: how long a job will take here, and how much memory, by doing a few of its steps.

Each half is probed by a process of its own, one after the other, so that each has the machine as a worker would have
it. What was measured is kept, by networks, settings and machine, and asked for only once.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import psutil
import typer
from pydantic import ValidationError
from rich.table import Table

from shared.settings import Settings
from shared.specs import JobSpec
from shared.specs.probes import Half, Probe, TimeEstimate, estimate_time, probe_key
from synth_service.cli.job_file import InvalidJobFile, RefusedJob, check_job, load_job_file
from synth_service.cli.options import Changes, JobFile, Json
from synth_service.cli.outcomes import ExitCode, fail, messages, print_json, show
from synth_service.cli.running import read_settings

MODULES: Final[dict[Half, str]] = {"synthesis": "synth_service.synthesis.probe", "distillation": "distiller.probe"}
PROBE_SECONDS: Final = 600.0


def estimate(
    job_file: JobFile,
    changes: Changes = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    as_json: Json = False,
) -> None:
    """Tell how long a job takes on this machine and how much memory, after a few of its steps."""
    try:
        spec = check_job(load_job_file(job_file, changes or ()))
    except (InvalidJobFile, RefusedJob) as error:
        fail(str(error), ExitCode.USAGE)
    settings = read_settings()
    probes: dict[Half, Probe | None] = {"synthesis": None, "distillation": None}
    for half in MODULES:
        if getattr(spec, half) is not None:
            probes[half] = _probe(spec, half, settings, fresh=fresh)
    found = estimate_time(
        spec,
        probes["synthesis"],
        probes["distillation"],
        pool_memory_bytes=settings.pool_memory_bytes,
        pool_disk_bytes=settings.pool_disk_bytes,
        memory_bytes=psutil.virtual_memory().total,
    )
    if as_json:
        print_json(found)
    else:
        show(time_table(found))
        for warning in found.warnings:
            messages.print(f"[yellow]warning:[/] {warning}")


def time_table(found: TimeEstimate) -> Table:
    """One line for each number, in units that people read."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in found.model_dump(exclude={"warnings"}).items():
        if value is None:
            continue
        label = name.replace("_", " ").replace(" bytes", "")
        if name.endswith("bytes"):
            table.add_row(label, f"{value / 1e9:.2f} GB")
        else:
            table.add_row(label, f"{value:.2f}" if value >= 0.1 else f"{value:.4f}")
    return table


def _probe(spec: JobSpec, half: Half, settings: Settings, *, fresh: bool) -> Probe:
    machine = f"{platform.node()} {settings.device} {settings.threads} {psutil.cpu_count()} {sys.version}"
    kept = _cache_folder() / f"{probe_key(spec, half, machine)}.json"
    if not fresh and kept.is_file():
        try:
            return Probe.model_validate_json(kept.read_bytes())
        except ValidationError:
            kept.unlink(missing_ok=True)  # of another version
    messages.print(f"[dim]measuring {half} for some seconds[/]")
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-m", MODULES[half]],
            input=spec.model_dump_json().encode(),
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        fail(f"three steps of {half} take more than {PROBE_SECONDS / 60:.0f} minutes on this machine")
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        fail(f"{half} cannot be measured: {lines[-1]}", ExitCode.FAILED)
    probe = Probe.model_validate_json(done.stdout.splitlines()[-1])
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(probe.model_dump_json(), encoding="utf-8")
    return probe


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fast-dfkd" / "probes"
