"""``python -m tests.chaos``: minutes of faults, then one report. Exits with 1 when a promise was broken."""

from __future__ import annotations

import argparse
import json
import random
import sys

import structlog

from tests.chaos.cluster import new_folder
from tests.chaos.jobs import SHAPES
from tests.chaos.rounds import Chaos, tell


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print nothing but the report, on one line")
    parser.add_argument("--seed", type=int, default=None, help="of the faults; drawn and reported when left out")
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long harm is done")
    parser.add_argument("--pause", type=float, default=8.0, help="seconds between faults, on average")
    parser.add_argument("--storage", choices=("disk", "s3"), default="disk", help="where the jobs' files lie")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="faults, in place of all that the storage can have")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES), help="of jobs, each round")
    parser.add_argument("--undisturbed", type=int, default=2, help="jobs of each shape that run in peace first")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    chaos = Chaos(
        new_folder(),
        seed=seed,
        seconds=60 * arguments.minutes,
        pause_seconds=arguments.pause,
        object_storage=arguments.storage == "s3",
        shapes=tuple(arguments.shapes),
        undisturbed=arguments.undisturbed,
        kinds=tuple(arguments.kinds) if arguments.kinds else None,
        say=(lambda _: None) if arguments.json else tell,
    )
    report = chaos.run()
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(1 if report["problems"] else 0)


if __name__ == "__main__":
    main()
