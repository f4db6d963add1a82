"""The digits example: a teacher of digits, the job that distils it without a digit, and real digits to measure on.

It lies in the wheel, and in a checkout under ``examples/digits`` with the recipe of its teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from shared.storage import Storage

JOB_FILE: Final = "job.yaml"
FOLDER: Final = "digits"
"""Where its files lie under the storage root, as the job names them."""

_IN_CHECKOUT: Final = Path(__file__).resolve().parents[1] / "examples" / "digits"
_IN_WHEEL: Final = Path(__file__).resolve().parent / "digits"


def example_folder() -> Path | None:
    """The folder of the example; None where it was left out."""
    return next((each for each in (_IN_CHECKOUT, _IN_WHEEL) if (each / JOB_FILE).is_file()), None)


def job_fields(example: Path) -> dict[str, Any]:
    """The job of the example, as a client writes it."""
    import yaml  # of the extras `api` and `cli`

    fields: dict[str, Any] = yaml.safe_load((example / JOB_FILE).read_text(encoding="utf-8"))
    return fields


def put_inputs(spec: dict[str, Any], example: Path, storage: Storage) -> None:
    """Puts the files that the example's job names into the storage.

    Raises:
        OSError: they cannot be read or written.
    """
    for name in (spec["teacher"]["checkpoint"], spec["evaluation"]["shards"]):
        storage.put_file(example / Path(name).name, name)
