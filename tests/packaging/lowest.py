"""``make lowest``: the tests of API, client and command line with the oldest versions that pyproject.toml allows.

What the tests themselves need, and torch, come from the environment that this runs in.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
EXTRAS: Final = ("api", "cli", "embedded")
TESTS: Final = (
    "tests/synth_service/api",
    "tests/synth_service/client",
    "tests/synth_service/cli",
    "tests/shared/broker",
)


def lowest_requirements() -> list[str]:
    """The direct requirements, each at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    return [requirement.partition(",")[0].partition(";")[0].replace(">=", "==").strip() for requirement in wanted]


def main() -> int:
    """Installs them into an environment of their own, and runs the tests there."""
    with tempfile.TemporaryDirectory(prefix="dfkd-lowest-") as folder:
        environment = Path(folder) / "venv"
        python = environment / "bin" / "python"
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, str(environment))
        run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python), *lowest_requirements())
        (packages,) = (environment / "lib").glob("python*/site-packages")
        fallback = [str(ROOT), *(each for each in sys.path if each.endswith("site-packages"))]
        (packages / "fallback.pth").write_text("\n".join(fallback), encoding="utf-8")
        return subprocess.run([str(python), "-m", "pytest", "-q", *TESTS], cwd=ROOT).returncode


def run(*command: str) -> None:
    """Runs a command; ends with its status if it fails."""
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
