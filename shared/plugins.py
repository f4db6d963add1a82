"""What other packages add: tasks, inversion methods and distillation losses, found by their entry points.

A package names what it brings in its own ``pyproject.toml``, and nothing of ours has to be edited::

    [project.entry-points."fast_dfkd.inverters"]
    my-method = "my_package.specs:MySynthesis"

Names are read without importing anything, since the API must not import torch; ``docs/architecture.md`` says
what each group's objects are.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Literal

Group = Literal["fast_dfkd.tasks", "fast_dfkd.inverters", "fast_dfkd.kd_losses"]


def plugins(group: Group) -> dict[str, EntryPoint]:
    """The entry points of a group by name, in the order of their names; ``load()`` imports one.

    Raises:
        ValueError: two packages bring the same name, so that which one a job means would depend on their order.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value)):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ValueError(
                f"two packages bring `{entry.name}` to {group}: {other.value} and {entry.value}; uninstall one of them"
            )
    return found
