"""A stall that is shorter than the lease."""

from __future__ import annotations

import signal
import time

from daemon_process import eventually
from fault_stage import LEASE_S, Stage


def test_a_stall_shorter_than_the_lease_changes_nothing_for_the_worse(stage: Stage) -> None:
    """A short stop costs ticks, which are skipped and not made up for."""
    before, moment = stage.daemon.status(), stage.moment()
    stage.daemon.signal(signal.SIGSTOP)
    time.sleep(LEASE_S / 3)
    stage.daemon.signal(signal.SIGCONT)
    eventually(
        lambda: stage.daemon.status()["ticks_skipped_total"] > before["ticks_skipped_total"],
        stage.daemon.describe,
    )
    assert not stage.resets_since(moment.t_s)
    stage.control()
