"""A stopped daemon, a killed or hung guard: driver default in time, and control again without a restart."""

from __future__ import annotations

import os
import signal
import time

from daemon_process import eventually
from fault_stage import LEASE_BOUND_S, LEASE_S, Stage

# A killed guard is noticed at once and started again after a second; then it undoes what is recorded.
RESPAWN_BOUND_S = 12.0


def test_a_stopped_daemon_loses_its_clocks_within_the_lease_and_recovers(stage: Stage) -> None:
    """SIGSTOP for longer than the lease: the guard resets alone; after SIGCONT control comes back."""
    before = stage.moment()
    stage.daemon.signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    stage.default_within(LEASE_BOUND_S, stopped_s)
    default_s = time.monotonic()
    time.sleep(0.5)
    stage.daemon.signal(signal.SIGCONT)
    assert not [call for call in stage.sets_since(default_s) if call.t_s < default_s + 0.4]
    assert "the lease ended without renewal" in stage.said_since(before)
    stage.control()
    assert "active -> failsafe" in stage.said_since(before)


def test_a_stall_shorter_than_the_lease_changes_nothing_for_the_worse(stage: Stage) -> None:
    """A short stop costs ticks, which are skipped and not made up for."""
    before = stage.daemon.status()
    stage.daemon.signal(signal.SIGSTOP)
    time.sleep(LEASE_S / 3)
    stage.daemon.signal(signal.SIGCONT)
    eventually(
        lambda: stage.daemon.status()["ticks_skipped_total"] > before["ticks_skipped_total"],
        stage.daemon.describe,
    )
    stage.control()


def test_a_killed_guard_is_started_again_and_undoes_what_it_had_recorded(stage: Stage) -> None:
    """A guard killed with clocks set: its successor resets them at its start, and control comes back."""
    before, killed = stage.moment(), stage.daemon.guard_pid
    os.kill(killed, signal.SIGKILL)
    failed = stage.daemon.wait_for("failsafe")
    assert failed["regime_reason"].startswith("guard: ")
    stage.default_within(RESPAWN_BOUND_S, before.t_s)
    default_s = time.monotonic()
    assert not [call for call in stage.sets_since(before.t_s) if call.t_s < default_s]
    assert "resetting the clocks an earlier guard set" in stage.said_since(before)
    assert "guard: ended with status -9" in stage.said_since(before)
    stage.control()
    assert stage.daemon.guard_pid != killed
    assert stage.daemon.metric("kvwatt_guard_state", state="connected") == 1.0


def test_a_hung_guard_means_failsafe_and_a_reset_when_it_goes_on(stage: Stage) -> None:
    """A guard that no longer answers cannot be used; its first act afterwards is the reset."""
    before = stage.moment()
    os.kill(stage.daemon.guard_pid, signal.SIGSTOP)
    failed = stage.daemon.wait_for("failsafe")
    assert failed["regime_reason"].startswith("guard: ")
    time.sleep(LEASE_S)
    resumed_s = time.monotonic()
    os.kill(stage.daemon.guard_pid, signal.SIGCONT)
    stage.default_within(LEASE_BOUND_S, resumed_s)
    assert "no answer to" in stage.said_since(before)
    stage.control()
