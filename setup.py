"""What pyproject.toml cannot say: the digits example goes into the wheel, so that `dfkd demo` needs no checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLE = Path("examples") / "digits"
FILES = ("job.yaml", "teacher.safetensors", "held-out.tar")


class BuildWithExample(build_py):
    """Copies the example to where ``synth_service.digits_example`` looks. An editable install has the checkout."""

    def run(self) -> None:
        """Builds."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "synth_service" / "digits"
            target.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copy2(EXAMPLE / name, target / name)


setup(cmdclass={"build_py": BuildWithExample})
