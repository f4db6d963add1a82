"""What a valid job must also satisfy in this deployment before it is queued.

The files that it names exist, the code that it names may be imported, and its webhook may be sent. Whether a
checkpoint fits its network is for the worker to say: that takes torch.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from shared.broker import Models
from shared.errors import UserError
from shared.settings import Settings
from shared.shards.patterns import expand_shards
from shared.specs import JobSpec, StudentSpec, TeacherSpec
from shared.specs.architectures import check_factory_allowed
from shared.specs.named_files import named_checkpoints, named_shards
from shared.specs.webhooks import is_allowed, receiver_of
from shared.storage import PathOutsideStorage, Storage, model_paths
from shared.storage.model_paths import referred_to
from synth_service.api.problems import Problem
from synth_service.wire import FieldError

SHARDS_LOOKED_FOR = 1000
"""Of a longer pattern the worker, which reads every file, notices what is missing later."""


def admit(spec: JobSpec, storage: Storage, settings: Settings, models: Models, owner: str | None = None) -> JobSpec:
    """The job as it is to be stored, unless no worker of this deployment could run it.

    Args:
        spec: what a client wrote.
        storage, settings, models: of the deployment.
        owner: whose models may be used; None for everybody's.

    Raises:
        Problem: 422 with every offending field and the code of the first.
    """
    spec, missing = _with_models(spec, models, owner)
    found = [
        *missing,
        *_forbidden_factories(spec, settings),
        *_forbidden_webhook(spec, settings),
        *_unusable_files(spec, storage),
    ]
    if found:
        code, hint, _ = found[0]
        errors = [error for *_, error in found]
        detail = "; ".join(f"{error.field}: {error.message}" for error in errors)
        raise Problem(422, code, detail, errors=errors, hint=hint)
    return spec


def _with_models(
    spec: JobSpec, models: Models, owner: str | None
) -> tuple[JobSpec, list[tuple[str, str | None, FieldError]]]:
    """The job with the paths of the uploaded checkpoints that it refers to by id, and which of these are not there."""
    missing: list[tuple[str, str | None, FieldError]] = []
    changed: dict[str, TeacherSpec | StudentSpec] = {}
    for name, network in (("teacher", spec.teacher), ("student", spec.student)):
        model_id = referred_to(network.checkpoint) if network and network.checkpoint else None
        if network is None or model_id is None:
            continue
        try:
            model = models.get(model_id)
        except KeyError:
            model = None
        if model is None or owner not in (None, model.owner):
            message = f"there is no model `{model_id}`"
            hint = "GET /models lists them; POST /models uploads one."
            missing.append(("model_not_found", hint, FieldError(field=f"{name}.checkpoint", message=message)))
        else:
            changed[name] = network.model_copy(update={"checkpoint": model_paths.file(model.id, model.filename)})
    return spec.model_copy(update=changed), missing


def _forbidden_factories(spec: JobSpec, settings: Settings) -> Iterator[tuple[str, str | None, FieldError]]:
    for field, network in (("teacher.arch", spec.teacher), ("student.arch", spec.student)):
        if network is not None:
            try:
                check_factory_allowed(network.arch, settings.allowed_factories)
            except ValueError as error:
                yield "factory_not_allowed", None, FieldError(field=field, message=str(error))


def _forbidden_webhook(spec: JobSpec, settings: Settings) -> Iterator[tuple[str, str | None, FieldError]]:
    if spec.webhook is not None and not is_allowed(spec.webhook, settings.webhook_hosts):
        message = f"this deployment sends nothing to `{receiver_of(spec.webhook)}`"
        hint = "Leave `webhook` out, or ask the operator, who lists the hosts in DFKD_WEBHOOK_HOSTS."
        yield "webhook_not_allowed", hint, FieldError(field="webhook", message=message)


def _unusable_files(spec: JobSpec, storage: Storage) -> Iterator[tuple[str, str | None, FieldError]]:
    for field, name in named_checkpoints(spec):
        if referred_to(name) is None:
            yield from _unusable(field, [name], storage)
    for field, pattern in named_shards(spec):
        try:
            names = expand_shards(pattern)
        except UserError as error:
            yield error.code, None, FieldError(field=field, message=error.message)
        else:
            yield from _unusable(field, islice(names, SHARDS_LOOKED_FOR), storage)


def _unusable(field: str, names: Iterable[str], storage: Storage) -> Iterator[tuple[str, str | None, FieldError]]:
    """The first of the files that cannot be used, if one cannot."""
    for name in names:
        try:
            if storage.exists(name):
                continue
        except PathOutsideStorage as error:
            hint = "Write a path relative to the storage root, such as `teachers/mine.safetensors`."
            yield "path_outside_storage", hint, FieldError(field=field, message=str(error))
            return
        hint = f"Copy the file there first: it must lie under {storage.root} as {name}."
        message = f"there is no file `{name}` under the storage root {storage.root}"
        yield "not_found_in_storage", hint, FieldError(field=field, message=message)
        return
