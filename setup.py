"""What pyproject.toml cannot say: the examples go into the wheel, so that `dfkd demo` needs no checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLES = ("digits", "scenes")
FILES = ("job.yaml", "teacher.safetensors", "held-out.tar")


class BuildWithExamples(build_py):
    """Copies the examples to where ``synth_service.digits_example`` looks. An editable install has the checkout."""

    def run(self) -> None:
        """Builds."""
        super().run()
        if not self.editable_mode:
            for example in EXAMPLES:
                target = Path(self.build_lib) / "synth_service" / example
                target.mkdir(parents=True, exist_ok=True)
                for name in FILES:
                    shutil.copy2(Path("examples") / example / name, target / name)


setup(cmdclass={"build_py": BuildWithExamples})
