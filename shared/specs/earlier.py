"""Specifications that earlier versions stored: what they left out has to go on meaning what it meant then.

A stored specification names every field that its version had. A field that it lacks came later, so the job runs on with
what that version did, and not with the default of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MEANT_BY_FAST: Final[Mapping[str, Any]] = {"bn_distance": "norm"}
MEANT_BY_DISTILLATION: Final[Mapping[str, Any]] = {
    "max_gradient_norm": None,
    "learning_rate_warmup_steps": 0,
    "procedural_share": 0.0,
}
MEANT_BY_AUGMENTATION: Final[Mapping[str, Any]] = {"padding": "black"}


def complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored specification with the fields that its version did not have; one of this version as it is.

    Args:
        stored: what a job's record holds; not changed.
    """
    completed = dict(stored)
    for name in ("synthesis", "distillation"):
        part = completed.get(name)
        if not isinstance(part, Mapping):
            continue
        if name == "distillation":
            part = {**MEANT_BY_DISTILLATION, **part}
        elif part.get("method") in ("fast-meta", "fast"):
            part = {**MEANT_BY_FAST, **part}
        if isinstance(part.get("augmentation"), Mapping):
            part = {**part, "augmentation": {**MEANT_BY_AUGMENTATION, **part["augmentation"]}}
        completed[name] = part
    return completed
