"""Student snapshots: the newest state of the student, which synthesis disagrees with."""

from __future__ import annotations

import json

from pydantic import BaseModel

from shared.broker import keys
from shared.broker.attempts import Attempt, unless_refused
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import job_script


@job_script("""
if not holds() then return 'lost' end
if redis.call('HGET', student, 'name') == name then return 'ok' end
redis.call('HSET', student, 'version', version, 'name', name, 'sha256', sha256)
set('student_version', version)
event('student_published', task, told)
return 'ok'
""")
def _publish(*, student: Key, version: int, name: str, sha256: str, told: str) -> str: ...


class StudentSnapshot(BaseModel):
    """A published state of the student. Its version is the distillation step after which it was taken."""

    version: int
    name: str
    sha256: str


class Snapshots:
    """The newest snapshot of each job. Every write is fenced by the attempt's token."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def publish(self, attempt: Attempt, snapshot: StudentSnapshot) -> None:
        """Makes a student snapshot the newest.

        Raises:
            LeaseLost: another attempt has the task; the snapshot does not count.
        """
        answer = _publish(
            self._redis,
            attempt.caller,
            student=keys.student(attempt.job_id),
            version=snapshot.version,
            name=snapshot.name,
            sha256=snapshot.sha256,
            told=json.dumps({"version": snapshot.version}),
        )
        unless_refused(answer, attempt)

    def newest(self, job_id: str) -> StudentSnapshot | None:
        """The newest snapshot, or None before the first."""
        fields = self._redis.hgetall(keys.student(job_id))
        return StudentSnapshot.model_validate(fields) if fields else None
