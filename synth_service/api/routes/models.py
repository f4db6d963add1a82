"""Uploaded checkpoints: for those who cannot copy files into the storage.

A file is looked into before it counts, without torch (``shared.weight_files.inspection``): what no worker would load is
refused here.
"""

import time
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from shared.broker import Broker, ModelInUse
from shared.settings import Settings
from shared.storage import Storage, model_paths
from shared.storage.identity import StorageIdentity
from shared.weight_files.fingerprints import recognize
from shared.weight_files.inspection import CheckpointContent, UnreadableFile, UnsafePickle, inspect
from shared.weight_files.model import Model
from synth_service.api.dependencies import BrokerInUse, IdentityInUse, SettingsInUse, StorageInUse
from synth_service.api.problems import Problem, allowance_used, documented
from synth_service.api.security.auth import Caller, CallerInUse, allowance_of
from synth_service.api.uploads import Received, received
from synth_service.wire import FieldError, ModelDetail, ModelPage

router = APIRouter(tags=["models"])

HOW_TO_SAVE = (
    "Save the weights alone: safetensors.torch.save_file(network.state_dict(), path), or "
    "torch.save(network.state_dict(), path)."
)
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file itself, as it is.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

ModelId = Annotated[str, Path(pattern=model_paths.ID_PATTERN, description="Id of a model.")]


@router.post(
    "/models",
    status_code=201,
    response_model=Model,
    responses=documented(400, 403, 413, 422, 507),
    summary="Upload a checkpoint",
    openapi_extra=BODY,
)
async def upload_model(
    request: Request,
    response: Response,
    broker: BrokerInUse,
    storage: StorageInUse,
    identity: IdentityInUse,
    settings: SettingsInUse,
    caller: CallerInUse,
    filename: Annotated[str, Query(max_length=200, description="Name of the file, for people.")] = "weights",
    x_checksum_sha256: Annotated[
        str | None,
        Header(pattern=r"^[0-9a-fA-F]{64}$", description="sha256 of the body; an upload that differs is refused."),
    ] = None,
) -> Model:
    """Takes safetensors, or a torch file that loads weights-only, as the body. Jobs name it by `checkpoint`."""
    room = await run_in_threadpool(_room, broker, caller, settings)
    too_large = allowance_used("bytes") if room < settings.max_upload_bytes else None
    max_bytes = min(settings.max_upload_bytes, room)
    async with received(request, storage, model_paths.FOLDER, max_bytes=max_bytes, too_large=too_large) as upload:
        if x_checksum_sha256 is not None and x_checksum_sha256.lower() != upload.sha256:
            message = f"the body that arrived has the sha256 {upload.sha256}"
            error = FieldError(field="X-Checksum-Sha256", message=message)
            raise Problem(422, "checksum_mismatch", f"X-Checksum-Sha256: {message}.", errors=[error])
        # One after another: each may take tens of megabytes for a moment.
        content = await run_sync(_content, upload, limiter=request.app.state.inspections)
        model = await run_in_threadpool(
            _store, upload, content, broker, storage, identity, caller, model_paths.plain_filename(filename)
        )
    response.headers["Location"] = f"/models/{model.id}"
    return model


def _room(broker: Broker, caller: Caller, settings: Settings) -> int:
    """Bytes that the caller may still upload."""
    limit = allowance_of(caller, settings).bytes
    if limit is None or caller.name is None:
        return settings.max_upload_bytes
    return max(0, limit - broker.bytes_of(caller.name))


def _store(
    upload: Received,
    content: CheckpointContent,
    broker: Broker,
    storage: Storage,
    identity: StorageIdentity,
    caller: Caller,
    filename: str,
) -> Model:
    identity.establish(in_empty_root=True)
    model_id = model_paths.new_model_id()
    likeness = recognize(content.tensors)
    model = Model(
        id=model_id,
        checkpoint=model_paths.folder(model_id),
        filename=filename,
        owner=caller.name,
        created_at=time.time(),
        bytes=upload.bytes,
        sha256=upload.sha256,
        format=content.format,
        tensor_count=len(content.tensors),
        parameters=content.parameters,
        architectures=list(likeness.architectures),
        num_classes=likeness.num_classes,
        input_channels=likeness.input_channels,
    )
    storage.put_file(upload.path, model_paths.file(model_id, filename), move=True)
    try:
        broker.models.create(model, content.tensors)
    except BaseException:
        storage.delete_tree(model_paths.folder(model_id))
        raise
    return model


def _content(upload: Received) -> CheckpointContent:
    try:
        return inspect(upload.path)
    except UnsafePickle as error:
        raise _refused("unsafe_checkpoint", f"would have to run code to load: {error}", error.remedy) from None
    except UnreadableFile as error:
        raise _refused("unreadable_checkpoint", f"is no checkpoint: {error}", error.remedy) from None


def _refused(code: str, message: str, remedy: str | None) -> Problem:
    error = FieldError(field="", message=message)
    return Problem(422, code, f"The file {message}.", errors=[error], hint=remedy or HOW_TO_SAVE)


@router.get("/models", response_model=ModelPage, responses=documented(422), summary="List models")
def list_models(
    broker: BrokerInUse,
    caller: CallerInUse,
    after: Annotated[
        str | None, Query(pattern=model_paths.ID_PATTERN, description="Last id of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most models to return.")] = 20,
) -> ModelPage:
    """Uploaded checkpoints from newest to oldest."""
    data, has_more = broker.models.list(after=after, limit=limit, owner=caller.owner_filter)
    return ModelPage(data=data, has_more=has_more)


@router.get("/models/{model_id}", response_model=ModelDetail, responses=documented(404, 422), summary="Show a model")
def get_model(model_id: ModelId, broker: BrokerInUse, caller: CallerInUse) -> Response:
    """What is known of a checkpoint, with names and shapes of its tensors."""
    record = _existing(model_id, broker, caller).model_dump_json()
    body = f'{record[:-1]},"tensors":{broker.models.tensors(model_id)}}}'
    return Response(body, media_type="application/json")


@router.delete("/models/{model_id}", status_code=204, responses=documented(404, 409, 422), summary="Delete a model")
def delete_model(model_id: ModelId, broker: BrokerInUse, storage: StorageInUse, caller: CallerInUse) -> None:
    """Removes a checkpoint for good. 409 while a job that has not ended uses it."""
    # One whose record nobody can read can still be deleted.
    if caller.owner_filter is not None and _owner(model_id, broker) != caller.owner_filter:
        raise _no_such_model(model_id)
    try:
        broker.models.delete(model_id)
    except KeyError:
        raise _no_such_model(model_id) from None
    except ModelInUse as error:
        hint = "Wait for the job, or cancel it."
        raise Problem(409, "model_in_use", f"{error} uses {model_id}.", hint=hint) from None
    storage.delete_tree(model_paths.folder(model_id))


def _existing(model_id: str, broker: Broker, caller: Caller) -> Model:
    try:
        model = broker.models.get(model_id)
    except KeyError:
        raise _no_such_model(model_id) from None
    if caller.owner_filter not in (None, model.owner):
        raise _no_such_model(model_id)
    return model


def _owner(model_id: str, broker: Broker) -> str | None:
    try:
        return broker.models.owner(model_id)
    except KeyError:
        raise _no_such_model(model_id) from None


def _no_such_model(model_id: str) -> Problem:
    return Problem(404, "model_not_found", f"There is no model {model_id}.", hint="GET /models lists all.")
