"""Which job a user means: by its whole id, the beginning of one, its name, or ``last``."""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from synth_service.cli.outcomes import ExitCode, fail, messages
from synth_service.client import Client, Job

LAST: Final = "last"
LOOKED_THROUGH: Final = 1000
"""Of older jobs the whole id is needed."""

_WHOLE = re.compile(r"job-[0-9a-f]{20}", re.ASCII)
_SHORTEST_PREFIX: Final = 4


def find_job(client: Client, text: str) -> str:
    """The id of the job that ``text`` means; ends the command where there is none, or several.

    Args:
        client: asked for the newest jobs, unless the text is a whole id.
        text: a whole id; the beginning of one, with or without ``job-``; a name, of which the newest job counts; or
            ``last`` for the newest job of all.
    """
    if _WHOLE.fullmatch(text):
        return text
    if text == LAST:
        page = client.jobs.list(limit=1)
        if not page.data:
            fail("there are no jobs yet; start one with `dfkd submit` or `dfkd run`", ExitCode.USAGE)
        return _told(page.data[0])
    begun = text if text.startswith("job-") else f"job-{text}"
    is_prefix = len(begun) >= len("job-") + _SHORTEST_PREFIX
    named, alike = None, []
    for job in islice(client.jobs.iterate(), LOOKED_THROUGH):
        if named is None and job.name == text:
            named = job
        if is_prefix and job.id.startswith(begun):
            alike.append(job)
    if len(alike) == 1:
        return _told(alike[0])
    if named is not None:
        return _told(named)
    reason = f"no job has the id or the name {text!r}; `dfkd jobs` lists them"
    if alike:
        listed = ", ".join(job.id for job in alike[:5])
        reason = f"{len(alike)} jobs begin with {text!r}: {listed}{', …' if len(alike) > 5 else ''}"
    return fail(reason, ExitCode.USAGE)


def _told(job: Job) -> str:
    messages.print(f"[dim]{job.id}[/]" + (f"[dim] ({job.name})[/]" if job.name else ""))
    return job.id
