"""The examples: a teacher, the job that distils it without its data, and real data to measure on.

``digits`` classifies, ``scenes`` labels every pixel of scenes of digits. They lie in the wheel, and in a checkout under
``examples`` with the recipes of their teachers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from shared.storage import Storage

JOB_FILE: Final = "job.yaml"
FOLDER: Final = "digits"
"""Where the digits' files lie under the storage root, as the job names them."""

ExampleName = Literal["digits", "scenes"]

_IN_CHECKOUT: Final = Path(__file__).resolve().parents[1] / "examples"
_IN_WHEEL: Final = Path(__file__).resolve().parent


def example_folder(name: ExampleName = "digits") -> Path | None:
    """The folder of an example; None where it was left out."""
    folders = (_IN_CHECKOUT / name, _IN_WHEEL / name)
    return next((each for each in folders if (each / JOB_FILE).is_file()), None)


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
