"""Writes what some extras of this package require, so that an image can install that before it has the code.

``python requirements.py --out FOLDER EXTRA...`` reads pyproject.toml and constraints.txt beside it and writes
``requirements.txt`` and ``constraints.txt``. Both leave out what does not matter to the extras, comments included, so
that a container build takes its cached layer until a requirement really changes.
"""

import argparse
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """The requirements of the package and of the extras, sorted.

    Raises:
        KeyError: there is no such extra.
    """
    project = tomllib.loads(pyproject)["project"]
    found = set(project["dependencies"])
    for extra in extras:
        found.update(project["optional-dependencies"][extra])
    return sorted(found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("extras", nargs="*")
    arguments = parser.parse_args()
    pins = [line for line in (HERE / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    arguments.out.mkdir(parents=True)
    for name, lines in (
        ("requirements.txt", requirements((HERE / "pyproject.toml").read_text(), arguments.extras)),
        ("constraints.txt", pins),
    ):
        (arguments.out / name).write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
