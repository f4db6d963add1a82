"""``make wheel``: builds sdist and wheel, installs the wheel with no checkout around, and runs `dfkd demo` with it.

With ``--light`` torch and everything else come from the environment that this runs in, and only the wheel is new.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
IN_SDIST: Final = ("tests/test_house.py", "docs/job-file.md", "examples/digits/job.yaml", "CHANGELOG.md", "setup.py")
IN_WHEEL: Final = (
    "synth_service/digits/teacher.safetensors",
    "synth_service/scenes/teacher.safetensors",
    "synth_service/py.typed",
    "shared/py.typed",
)


def main() -> int:
    """Does all of it; what is wrong ends it with a message."""
    is_light = "--light" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="dfkd-wheel-") as name:
        folder = Path(name)
        # The wheel is built from the sdist, so what the sdist lacks the wheel lacks, too.
        source = folder / "source"
        shutil.copytree(
            ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "dfkd-*", "site", "*.egg-info")
        )
        run([sys.executable, "-m", "build", "--outdir", str(folder), str(source)], cwd=folder)
        (sdist,) = folder.glob("*.tar.gz")
        (wheel,) = folder.glob("*.whl")
        with tarfile.open(sdist) as tar:
            check({each.partition("/")[2] for each in tar.getnames()}, IN_SDIST, sdist.name)
        with zipfile.ZipFile(wheel) as archive:
            check(set(archive.namelist()), IN_WHEEL, wheel.name)
        environment = folder / "venv"
        venv.create(environment, with_pip=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if is_light:
            run([*pip, "--no-deps", str(wheel)], cwd=folder)
            (packages,) = (environment / "lib").glob("python*/site-packages")
            fallback = [each for each in sys.path if each.endswith("site-packages")]
            (packages / "fallback.pth").write_text("\n".join(fallback), encoding="utf-8")
        else:
            run([*pip, "-c", str(ROOT / "constraints.txt"), f"{wheel}[all]"], cwd=folder)
        empty = folder / "empty"
        empty.mkdir()
        dfkd = str(environment / "bin" / "dfkd")
        print(run([dfkd, "--version"], cwd=empty).strip())
        run([dfkd, "doctor"], cwd=empty)
        outcome = json.loads(run([dfkd, "demo", "--json"], cwd=empty).splitlines()[-1])
        print(f"demo in an empty folder: student top-1 {outcome['student_top1']}, {outcome['seconds']} s")
    return 0 if outcome["student_top1"] > 0.9 else 1


def check(names: set[str], wanted: tuple[str, ...], what: str) -> None:
    """Ends with a message unless all of the wanted names are there."""
    if missing := [each for each in wanted if each not in names]:
        sys.exit(f"{what} lacks {', '.join(missing)}")


def run(command: list[str], cwd: Path) -> str:
    """What a command prints on stdout, run away from the checkout; ends with its status if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DFKD_"))}
    return subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
