"""Errors that are told apart by whose they are.

A ``UserError`` is of the job's making: trying again cannot help, so the job fails at once with its code.
Anything else that a worker meets counts as passing and is retried.
"""

from typing import Final


class UserError(Exception):
    """The job as written cannot work.

    Args:
        code: stable, snake_case; clients may branch on it (``error.code`` of a failed job).
        message: names the field, the value seen and the remedy.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


RETRY_HELPS: Final = frozenset(
    {
        "worker_lost",
        "internal_error",
        "too_many_damaged_shards",
        "checkpoint_not_found",
        "dataset_not_found",
        "factory_not_allowed",
        "out_of_memory",
        "storage_refused",
    }
)
"""Codes of failures after which the same job may succeed: once a file, a package or a larger machine is there. After
all others only another specification helps."""
