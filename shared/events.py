"""What can happen to a job: the one list of types of events.

Scripts, workers, the dashboard's JavaScript and the alert rules name events; a test of each holds them to this list.
"""

from enum import StrEnum


class EventType(StrEnum):
    """The ``type`` of an event, as clients see it."""

    JOB_CREATED = "job_created"
    CANCEL_REQUESTED = "cancel_requested"
    JOB_RETRIED = "job_retried"
    JOB_SUCCEEDED = "job_succeeded"
    JOB_FAILED = "job_failed"
    JOB_CANCELLED = "job_cancelled"

    ATTEMPT_STARTED = "attempt_started"
    ATTEMPT_RELEASED = "attempt_released"
    """Given back for a reason that is nobody's fault."""
    ATTEMPT_FAILED = "attempt_failed"
    ATTEMPT_LOST = "attempt_lost"
    """The worker fell silent."""
    TASK_SUCCEEDED = "task_succeeded"

    SHARD_SEALED = "shard_sealed"
    SHARD_DAMAGED = "shard_damaged"
    CHECKPOINT_LOST = "checkpoint_lost"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    SYNTHESIS_PAUSED = "synthesis_paused"
    SYNTHESIS_RESUMED = "synthesis_resumed"

    STUDENT_PUBLISHED = "student_published"
    STUDENT_EXPORTED = "student_exported"
    STUDENT_NOT_EXPORTED = "student_not_exported"
    EVALUATED = "evaluated"
    QUALITY_POOR = "quality_poor"
    """Images or student turned out to be poor, told once by an attempt."""

    WEBHOOK_DELIVERED = "webhook_delivered"
    WEBHOOK_FAILED = "webhook_failed"
    """Nobody answered as often as it is tried: the address will not be told of this end."""
