"""What a valid job must also satisfy in this deployment before it is queued.

The files that it names exist, and the code that it names may be imported. Whether a checkpoint fits its
network is for the worker to say: that takes torch.
"""

import re
from collections.abc import Iterator

from shared.networks.registry import check_factory_allowed
from shared.settings import Settings
from shared.specs import JobSpec
from shared.storage import PathOutsideStorage, Storage
from synth_service.api.files import is_there
from synth_service.api.problems import FieldError, Problem

_CHOICES = re.compile(r"\{([^{},.]*)(?:,[^{}]*|\.\.[^{}]*)\}")
"""One pair of braces in a shard pattern, ``{000..009}`` or ``{a,b}``, and the first thing it stands for."""


def admit(spec: JobSpec, storage: Storage, settings: Settings) -> None:
    """Refuses a job that no worker of this deployment could run.

    Raises:
        Problem: 422 with every offending field and the code of the first.
    """
    found = [*_forbidden_factories(spec, settings), *_unusable_files(spec, storage)]
    if found:
        code, hint, _ = found[0]
        errors = [error for *_, error in found]
        detail = "; ".join(f"{error.field}: {error.message}" for error in errors)
        raise Problem(422, code, detail, errors=errors, hint=hint)


def _forbidden_factories(spec: JobSpec, settings: Settings) -> Iterator[tuple[str, str | None, FieldError]]:
    for field, network in (("teacher.arch", spec.teacher), ("student.arch", spec.student)):
        if network is not None:
            try:
                check_factory_allowed(network.arch, settings.allowed_factories)
            except ValueError as error:
                yield "factory_not_allowed", None, FieldError(field=field, message=str(error))


def _unusable_files(spec: JobSpec, storage: Storage) -> Iterator[tuple[str, str | None, FieldError]]:
    names = (
        ("teacher.checkpoint", spec.teacher.checkpoint),
        ("student.checkpoint", spec.student.checkpoint if spec.student else None),
        ("shards", spec.shards),
        ("evaluation.shards", spec.evaluation.shards if spec.evaluation else None),
    )
    for field, name in names:
        if name is None:
            continue
        # Of several files the first stands for all; the worker reads, and so checks, every one.
        name = _CHOICES.sub(r"\1", name) if field.endswith("shards") else name
        try:
            if not is_there(storage, name):
                hint = f"Copy the file there first: it must lie under {storage.root} as {name}."
                yield (
                    "not_found_in_storage",
                    hint,
                    FieldError(field=field, message=f"there is no file `{name}` under the storage root {storage.root}"),
                )
        except PathOutsideStorage as error:
            hint = "Write a path relative to the storage root, such as `teachers/mine.safetensors`."
            yield "path_outside_storage", hint, FieldError(field=field, message=str(error))
