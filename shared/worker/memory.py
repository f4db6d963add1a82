"""A worker that runs out of memory: told so by an error, not killed, and able to say which field asked for it.

Linux gives out more memory than there is, and kills a process when it is used. A worker that is killed takes its job
through all attempts and says nothing. With a limit on what one process may hold, the allocation that goes too far
fails instead. On a GPU the driver does so by itself.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import torch

from shared.errors import UserError
from shared.jobs import Role
from shared.specs import JobSpec

SHARE_OF_MACHINE: Final = 0.9


def limit_memory(device: torch.device, max_bytes: int | None) -> None:
    """Limits the data that this process and its children may each hold, where the work is done on the CPU.

    Args:
        device: of the work. The drivers of GPUs reserve far more than they use, so there is no limit with one.
        max_bytes: None for nine tenths of what the machine, or this container, has.
    """
    if device.type == "cpu":
        limit = max_bytes or int(SHARE_OF_MACHINE * memory_of_machine())
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def memory_of_machine() -> int:
    """Bytes of memory of the machine, or of the control group of this process if it may use less."""
    found = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no number
            found = min(found, int(Path(path).read_text()))
    return found


def out_of_memory(role: Role, spec: JobSpec, error: BaseException) -> UserError:
    """What to tell of it: the fields of the job that ask for memory, the largest contributor first."""
    image = "×".join(map(str, spec.teacher.input.shape))
    fields = []
    if role is Role.SYNTHESIS and spec.synthesis is not None:
        fields.append(f"synthesis.batch_size ({spec.synthesis.batch_size:,} images of {image})")
    if role is Role.DISTILLATION and spec.distillation is not None:
        fields.append(f"distillation.batch_size ({spec.distillation.batch_size:,} images of {image})")
        fields.append(f"distillation.pool_capacity ({spec.distillation.pool_capacity:,} images)")
        if spec.evaluation is not None:
            fields.append(f"evaluation.shards and evaluation.batch_size ({spec.evaluation.batch_size:,})")
    first = str(error).strip().split("\n", 1)[0][:200]
    message = f"{' or '.join(fields)} asks for more memory than this worker has ({first}); use a smaller one"
    return UserError("out_of_memory", message)
