"""What the broker refuses a client, and why."""


class QueueFull(Exception):
    """As many unfinished jobs as the deployment allows are waiting already."""


class AllowanceUsed(Exception):
    """The owner of the key has as much as the key allows. The argument is what: a field of ``Allowance``."""


class IdempotencyConflict(Exception):
    """The idempotency key was used for another specification."""


class ModelMissing(Exception):
    """An uploaded checkpoint that the job refers to has been deleted."""


class NotExternal(Exception):
    """No other program trains on the job's images, so nothing waits for one."""


class JobFinished(Exception):
    """The job is in a final state, so the request comes too late."""


class JobSucceeded(Exception):
    """The job has all that it was to make, so there is nothing to try again."""


class JobUnfinished(Exception):
    """The job has not ended yet, so the request comes too early."""
