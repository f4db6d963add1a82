"""Every kind of fault by its name, and which of them come one at a time."""

from __future__ import annotations

from collections.abc import Iterable

from tests.chaos.faults import KINDS, NETWORK, OF_A_DISK, Kind
from tests.chaos.object_storage_faults import STORE_KINDS
from tests.chaos.server_faults import SERVER_KINDS


def _by_name(kinds: Iterable[Kind]) -> dict[str, Kind]:
    return {kind.__name__: kind for kind in kinds}


ON_A_DISK = _by_name((*KINDS, *SERVER_KINDS))
ON_OBJECT_STORAGE = {
    name: kind for name, kind in _by_name((*KINDS, *SERVER_KINDS, *STORE_KINDS)).items() if name not in OF_A_DISK
}

ONE_AT_A_TIME = ({*NETWORK, *_by_name(SERVER_KINDS)}, {*_by_name(STORE_KINDS)})
"""Of each group: its kinds need to reach the server, or lead elsewhere; the store can be in one trouble only."""
