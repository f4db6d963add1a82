"""``python -m tests.fuzz.coverage``: looks for inputs that break the readers of strangers' data, guided by coverage.

Runs each target of ``tests.fuzz.targets`` in a process of its own, for as long as ``--seconds`` says, and prints one
JSON object a target: seconds, executions, features of the code that were reached, and findings (inputs that raised,
took more than ``SLOWEST_SECONDS``, or took more than ``MOST_MEMORY_MB``). Exits with 1 when there is one. What was
learnt stays in ``--corpus``, so that a later run goes on from there. atheris does the work.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

SLOWEST_SECONDS: Final = 10
"""Of one input, on a machine that is busy with others."""

MOST_MEMORY_MB: Final = 1024


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.coverage", description=__doc__)
    parser.add_argument("targets", nargs="*", default=["checkpoints", "shards", "patterns", "specs"])
    parser.add_argument("--seconds", type=int, default=1800, help="for each target")
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz-corpus"), help="folder for what is learnt")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        _fuzz(arguments.targets[0], arguments.corpus, arguments.seconds)
    found = [run(target, arguments.corpus, arguments.seconds) for target in arguments.targets]
    sys.exit(any(each["findings"] for each in found))


def run(target: str, corpus: Path, seconds: int) -> dict[str, Any]:
    """Fuzzes one target in a process of its own, and prints and returns what came of it."""
    folder = corpus / target
    crashes = corpus / f"{target}-findings"
    for each in (folder, crashes):
        each.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in crashes.iterdir()}
    command = [sys.executable, "-m", "tests.fuzz.coverage", target, "--inside"]
    command += ["--seconds", str(seconds), "--corpus", str(corpus)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    findings = [path for path in sorted(crashes.iterdir()) if path.name not in before]
    executions = re.findall(r"#(\d+)\s", done.stderr)
    features = re.findall(r"\bft: (\d+)", done.stderr)
    report = {
        "target": target,
        "seconds": round(time.monotonic() - started),
        "executions": int(executions[-1]) if executions else 0,
        "features": int(features[-1]) if features else 0,
        "findings": [base64.b64encode(path.read_bytes()[:2000]).decode() for path in findings],
    }
    if findings or done.returncode:
        report["findings"] = report["findings"] or [f"exit status {done.returncode}"]
        report["output"] = done.stderr[-3000:]
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    return report


def _fuzz(name: str, corpus: Path, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["shared", "synth_service.api.dashboard.job_form"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    folder = corpus / name
    for number, seed in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.longest}",
        f"-timeout={SLOWEST_SECONDS}",
        f"-rss_limit_mb={MOST_MEMORY_MB}",
        f"-artifact_prefix={corpus / f'{name}-findings'}/",
        "-print_final_stats=1",
        str(folder),
    ]
    atheris.Setup([sys.argv[0], *options], target.call)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
