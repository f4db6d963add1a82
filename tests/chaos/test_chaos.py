"""A minute of chaos; ``make chaos`` runs ten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.kinds import ON_A_DISK
from tests.chaos.rounds import Chaos

pytestmark = pytest.mark.e2e

SLOW = {"cut_network", "cut_network_for_long", "freeze_all", "freeze_server", "empty_mount_point", "unmount_storage"}
"""Of them some take a minute each."""


@pytest.mark.timeout(600)
def test_a_minute_of_faults_loses_nothing(tmp_path: Path) -> None:
    chaos = Chaos(
        tmp_path / "cluster",
        seed=0,
        seconds=40,
        pause_seconds=2.5,
        shapes=("lockstep",),
        undisturbed=1,
        kinds=tuple(sorted(set(ON_A_DISK) - SLOW)),
    )

    report = chaos.run()

    assert report["problems"] == []
    assert (report["lost_images"], report["duplicate_images"], report["failed_jobs"]) == (0, 0, 0)
    assert len(report["faults_by_kind"]) >= 8
