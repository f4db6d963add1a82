"""Turns at tasks without a worker process around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.broker import Attempt, Broker
from shared.networks.building import build_network
from shared.networks.weights import save_checkpoint
from shared.settings import Settings
from shared.specs import JobSpec
from shared.storage import Storage
from shared.worker.stopping import StopFlag
from shared.worker.turn import Turn


@contextmanager
def turn_at(
    attempt: Attempt, broker: Broker, storage: Storage, stopping: StopFlag | None = None, **settings_given: Any
) -> Iterator[Turn]:
    """The turn of an attempt, with its heartbeat, as a worker with such settings would begin it."""
    settings = Settings(storage=storage.root, device="cpu", **settings_given)
    with Turn(attempt, broker, storage, settings, stopping or StopFlag(), lambda: None) as turn:
        yield turn


def put_teacher(storage: Storage, spec: JobSpec) -> None:
    """Stores weights, fresh ones, for the teacher of a job."""
    network = build_network(spec.teacher, num_classes=spec.teacher.num_classes, input=spec.teacher.input)
    path = storage.local_path(spec.teacher.checkpoint or "")
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(network, path, {})
