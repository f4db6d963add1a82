"""A follower of a distiller's leader: carries out one command after another, and decides nothing.

It touches neither the server nor the storage: weights and images come from the leader. What goes wrong here went
wrong for the leader too, which reports it; if not, the leader misses this rank at the next collective, and the launcher
starts the whole group anew.
"""

from __future__ import annotations

import signal
from typing import Any

import structlog
import torch

from distiller.ranks import RankGroup
from distiller.replica import Replica
from shared.errors import UserError
from shared.networks.building import build_network_of
from shared.settings import Settings
from shared.specs import JobSpec
from shared.tasks.base import build_task

logger = structlog.get_logger()


def follow(ranks: RankGroup, settings: Settings, device: torch.device) -> None:
    """Follows until the leader leaves.

    Raises:
        RanksLost: the group has ended otherwise.
    """
    # The leader is asked to stop as well; it ends its attempt in good order, for which it needs this rank.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    replica: Replica | None = None
    while True:
        command, argument, payload = ranks.hear()
        try:
            if command == "leave":
                return
            if replica is not None and command in ("begin", "end"):
                replica.close()
                replica = None
            if command == "begin":
                replica = _begin(payload, ranks, settings, device)
            elif replica is not None:
                _carry_out(replica, command, argument, payload)
        except UserError as error:
            logger.warning("command_failed", command=command, code=error.code, error=error.message)
            replica = None


def _begin(payload: Any, ranks: RankGroup, settings: Settings, device: torch.device) -> Replica:
    described, teacher_state, student_state = payload
    spec = JobSpec.model_validate_json(described)
    assert spec.student is not None
    networks = []
    for network_spec, state in ((spec.teacher, teacher_state), (spec.student, student_state)):
        network = build_network_of(spec, network_spec, settings.allowed_factories)
        network.load_state_dict(state)
        networks.append(network.to(device))
    task = build_task(spec.teacher.task, spec.teacher.num_classes)
    return Replica(spec, networks[0], networks[1], task, settings=settings, device=device, ranks=ranks)


def _carry_out(replica: Replica, command: str, argument: Any, payload: Any) -> None:
    if command == "measure_on":
        replica.measure_on(payload)
    elif command == "prepare":
        replica.prepare()
    elif command == "add":
        replica.add(payload, lambda add: add())
    elif command == "skip":
        replica.skip(int(argument))
    elif command == "steps":
        replica.steps(int(argument))
    elif command == "evaluate":
        replica.evaluate()
    elif command == "load":
        replica.load_state_dict(payload)
    else:
        raise ValueError(f"the leader of another version told: {command}")
