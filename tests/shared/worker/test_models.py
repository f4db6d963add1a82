"""Networks of strangers: built and filled, or refused with the field to change, and never waited for without end."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from shared.specs import JobSpec
from shared.storage import Storage
from shared.worker import models
from shared.worker.models import Models
from tests.attack.checkpoints import checkpoints
from tests.turns import put_teacher

TEACHER: dict[str, Any] = {"arch": "resnet8", "num_classes": 10, "checkpoint": "teacher.pth"}


def spec_of(**teacher: Any) -> JobSpec:
    return JobSpec.model_validate({"teacher": TEACHER | teacher, "distillation": None, "synthesis": {"num_images": 10}})


def models_of(spec: JobSpec, storage: Storage, tmp_path: Path) -> Models:
    return Models(spec, storage, tmp_path, ())


def test_a_teacher_is_built_and_filled(storage: Storage, tmp_path: Path) -> None:
    spec = spec_of(arch="wide_resnet", kwargs={"depth": 10, "width": 1})
    put_teacher(storage, spec)
    assert models_of(spec, storage, tmp_path).teacher() is not None


# Those that looking into them does not refuse, and one of each kind of the others; all are in ``test_inspection``.
HOSTILE = (
    *("zip: a shape that its storage has not", "legacy: a storage that is not there", "zip: no folder"),
    *("safetensors: metadata that is a number", "zip: contains itself", "legacy: contains itself"),
    *("zip: DATA.PKL beside data.pkl", "zip: colliding numbers as keys", "zip: a deflate bomb", "zip: runs os.system"),
)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_is_a_user_error(storage: Storage, tmp_path: Path, what: str) -> None:
    storage.put_bytes(checkpoints()[what], "teacher.pth")
    with pytest.raises(UserError, match=r"teacher\.checkpoint") as caught:
        models_of(spec_of(), storage, tmp_path).teacher()
    assert caught.value.code in ("unsafe_checkpoint", "unreadable_checkpoint", "checkpoint_mismatch")


@pytest.mark.parametrize("kwargs", [{"depth": 6_000_004, "width": 1}, {"depth": 10, "width": 100_000}])
def test_arguments_that_ask_for_a_network_without_end_are_a_user_error(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, int]
) -> None:
    monkeypatch.setattr(models, "BUILD_SECONDS", 1.0)
    with pytest.raises(UserError, match="kwargs") as caught:
        models_of(spec_of(arch="wide_resnet", kwargs=kwargs), storage, tmp_path).teacher()
    assert caught.value.code in ("arguments_too_large", "bad_network_arguments")


def test_a_stop_is_heard_while_a_network_is_built(storage: Storage, tmp_path: Path) -> None:
    def check() -> None:
        raise InterruptedError

    spec = spec_of(arch="wide_resnet", kwargs={"depth": 6_000_004, "width": 1})
    with pytest.raises(InterruptedError):
        Models(spec, storage, tmp_path, (), check).teacher()
