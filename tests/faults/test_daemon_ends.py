"""The daemon's own end, in every way: driver default, and no guard left behind."""

from __future__ import annotations

import signal
import time

import psutil
from daemon_process import eventually
from fault_stage import LEASE_BOUND_S, Staging


def test_killed_or_terminated_the_daemon_leaves_driver_default_and_no_guard(staging: Staging) -> None:
    """SIGKILL: the guard resets within the lease and ends. SIGTERM: exit status 0 and the same."""
    with staging() as stage:
        stage.control()
        guard = psutil.Process(stage.daemon.guard_pid)
        before = stage.moment()
        stage.daemon.signal(signal.SIGKILL)
        stage.default_within(LEASE_BOUND_S, time.monotonic())
        eventually(lambda: not guard.is_running() or guard.status() == "zombie", stage.daemon.log)
        assert "disconnected: resetting clocks of" in stage.said_since(before)
        stage.daemon.process.wait(90)
        stage.only_permitted_clocks()

        stage.daemon.start()
        stage.control()
        guard_pid = stage.daemon.guard_pid
        assert stage.daemon.stop() == 0
        stage.default_within(LEASE_BOUND_S, time.monotonic())
        assert not psutil.pid_exists(guard_pid)
        assert "Traceback" not in stage.daemon.log()


def test_a_daemon_killed_in_shadow_mode_leaves_no_guard_behind(staging: Staging) -> None:
    """A guard that was never asked for anything ends too when its daemon is gone."""
    with staging(mode="shadow") as stage:
        stage.daemon.wait_for("shadow")
        eventually(lambda: "guard: started as process" in stage.daemon.log(), stage.daemon.log)
        guard = psutil.Process(stage.daemon.guard_pid)
        stage.daemon.signal(signal.SIGKILL)
        eventually(lambda: not guard.is_running() or guard.status() == "zombie", stage.daemon.log)
        stage.daemon.process.wait(90)
