"""Whose files a job may name, where callers have their own jobs only.

All jobs share one storage root, and a path such as ``jobs/ID/student.safetensors`` would otherwise hand the result
of one caller to another. Whatever lies elsewhere below the root was put there by the operator, for everybody.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from shared.broker import Broker
from shared.errors import UserError
from shared.shards.patterns import expand_shards
from shared.specs import JobSpec
from shared.specs.named_files import named_checkpoints, named_shards
from shared.storage import model_paths
from synth_service.api.problems import Problem
from synth_service.wire import FieldError

JOBS_FOLDER: Final = "jobs"
MAX_FOLDERS: Final = 16
"""Folders of jobs that one pattern may name, since each costs a look at its owner."""

_ID = re.compile(r"(job|model)-[0-9a-f]{20}", re.ASCII)


def check_own_files(spec: JobSpec, broker: Broker, owner: str | None) -> None:
    """Refuses a job that names files of somebody else's jobs or models, as if there were no such files.

    Args:
        spec: what a client wrote.
        broker: knows the owners.
        owner: who asks; None where everybody may use everything.

    Raises:
        Problem: 422 with every offending field.
    """
    if owner is None:
        return
    errors = [
        FieldError(field=field, message=f"there is no folder `{folder}` of yours under the storage root")
        for field, names in _named_files(spec)
        for folder in _foreign_folders(names, broker, owner)
    ]
    if errors:
        detail = "; ".join(f"{error.field}: {error.message}" for error in errors)
        hint = "Name files of your own jobs and models, or those that the operator put there."
        raise Problem(422, "not_found_in_storage", detail, errors=errors, hint=hint)


def _named_files(spec: JobSpec) -> Iterator[tuple[str, Iterable[str]]]:
    """Fields and the files that each stands for. Models named by their id are looked up with their owner anyway."""
    for field, checkpoint in named_checkpoints(spec):
        if model_paths.referred_to(checkpoint) is None:
            yield field, [checkpoint]
    for field, pattern in named_shards(spec):
        try:
            yield field, expand_shards(pattern)
        except UserError:
            continue  # refused by ``admission`` with its reason


def _foreign_folders(names: Iterable[str], broker: Broker, owner: str) -> list[str]:
    """The first folder of a job or model among the files that is not the owner's, if there is one."""
    private = (JOBS_FOLDER, model_paths.FOLDER)
    folders: set[tuple[str, str]] = set()
    for name in names:
        parts = name.split("/", 2)
        # Some file systems ignore case.
        if len(parts) > 1 and parts[0].lower() in private:
            folders.add((parts[0].lower(), parts[1]))
        if len(folders) > MAX_FOLDERS:
            return ["/".join(min(folders))]
    return ["/".join(folder) for folder in sorted(folders) if not _owns(owner, *folder, broker)][:1]


def _owns(owner: str, kind: str, id: str, broker: Broker) -> bool:
    if not _ID.fullmatch(id):
        return False
    try:
        found = broker.jobs.get(id) if kind == JOBS_FOLDER else broker.models.get(id)
    except KeyError:
        return False
    return found.owner == owner
