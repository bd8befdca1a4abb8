"""Deaths, stops and shortages of the daemon and of the guard."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import httpx
from daemon_process import eventually
from damage import give_descriptors, run_out_of_memory, take_descriptors
from fault_stage import LEASE_S, Stage
from scenario import GONE, Do, Scenario, becomes, grows

from kvwatt_sim.server.launch import SimServer

KILLED_S = 0.1
RESPAWN_S = 3.0
# Three missed answers of a second each at most, then the successor's start.
WATCHDOG_S = 3.0 + RESPAWN_S
START_S = 10.0  # Python, imports, NVML; what counts is that nothing is set before the reset
FAULT_S = 1.5  # a poll, a tick and a reset
DISCONNECTED = "disconnected: resetting clocks of"
LEASE_ENDED = "the lease ended without renewal"


def daemon_signal(number: signal.Signals) -> Do:
    return lambda stage: stage.daemon.signal(number)


def restarted(stage: Stage) -> None:
    """What a service manager does with a daemon that has ended."""
    stage.daemon.process.wait(90)
    stage.daemon.start()


def out_of_memory(stage: Stage) -> float:
    """The kernel's own: no memory left, while somebody asks for long answers."""
    with httpx.Client(base_url=stage.daemon.url, timeout=2.0, trust_env=False) as client:
        return run_out_of_memory(
            stage.daemon.process, lambda: client.put("/api/v1/mode", content=b"x" * 60_000)
        )


def guard_signal(number: signal.Signals) -> Do:
    return lambda stage: os.kill(stage.daemon.guard_pid, number)


def both_killed(stage: Stage) -> float:
    """Nobody is left to reset anything; the next start does."""
    os.kill(stage.daemon.guard_pid, signal.SIGKILL)
    stage.daemon.signal(signal.SIGKILL)
    stage.daemon.process.wait(90)
    time.sleep(LEASE_S)
    assert stage.held_mhz is not None, "nobody was there to reset it"
    since_s = time.monotonic()
    stage.daemon.start()
    eventually(lambda: bool(stage.resets_since(since_s)), stage.daemon.log)
    first = min(call.t_s for call in stage.gpus.setter_log() if call.t_s >= since_s)
    assert stage.resets_since(since_s)[0].t_s == first, "something was set before the reset"
    return since_s


def disk_full(stage: Stage) -> None:
    """The disk fills while a clock is held, then the clock must go."""
    stage.disk.fill()
    stage.server.misbehave("500")
    stage.daemon.wait_for("failsafe")
    stage.server.misbehave("ok")


def disk_freed(stage: Stage) -> None:
    stage.disk.free()
    stage.server.misbehave("ok")


def no_descriptors(stage: Stage) -> None:
    """The daemon can open nothing more, and its server closes the connection."""
    take_descriptors(stage.daemon.process.pid)
    _restart(stage.server)


def _restart(server: SimServer) -> None:
    server.kill()
    server.start()


def guard_without_descriptors(stage: Stage) -> None:
    """The guard can open nothing more, and a clock must go: a reset needs no file."""
    take_descriptors(stage.daemon.guard_pid)
    stage.server.misbehave("500")


def guard_with_descriptors(stage: Stage) -> None:
    with contextlib.suppress(ProcessLookupError):  # one that takes no connection has been ended for it
        give_descriptors(stage.daemon.guard_pid)
    stage.server.misbehave("ok")


SCENARIOS = (
    Scenario("daemon SIGKILL", daemon_signal(signal.SIGKILL), KILLED_S, GONE, DISCONNECTED, restarted),
    Scenario("daemon OOM kill", out_of_memory, KILLED_S, GONE, DISCONNECTED, restarted),
    Scenario(
        "daemon SIGSTOP",
        daemon_signal(signal.SIGSTOP),
        LEASE_S,
        grows("kvwatt_ticks_skipped_total"),
        LEASE_ENDED,
        daemon_signal(signal.SIGCONT),
        told_after=True,
    ),
    Scenario(
        "daemon's event loop stalls",
        daemon_signal(signal.SIGUSR1),
        LEASE_S,
        grows("kvwatt_ticks_skipped_total"),
        LEASE_ENDED,
        told_after=True,
    ),
    Scenario(
        "full disk",
        disk_full,
        FAULT_S,
        grows("kvwatt_guard_errors_total"),
        "clocks are not set without a record",
        disk_freed,
        quick=False,
    ),
    Scenario(
        "wall clock jumps a year ahead",
        lambda stage: stage.wall_clock.jump(365 * 86_400.0),
        None,
        becomes(1.0, "kvwatt_telemetry_fresh"),
        "",
        lambda stage: stage.wall_clock.jump(0.0),
    ),
    Scenario(
        "wall clock jumps a year back",
        lambda stage: stage.wall_clock.jump(-365 * 86_400.0),
        None,
        becomes(1.0, "kvwatt_telemetry_fresh"),
        "",
        lambda stage: stage.wall_clock.jump(0.0),
        quick=False,
    ),
    Scenario(
        "daemon out of file descriptors",
        no_descriptors,
        START_S,
        grows("kvwatt_telemetry_errors_total", cause="unreachable"),
        "Too many open files",
        lambda stage: give_descriptors(stage.daemon.process.pid),
    ),
    Scenario(
        "guard out of file descriptors",
        guard_without_descriptors,
        FAULT_S,
        grows("kvwatt_telemetry_errors_total", cause="http_status"),
        "Too many open files",
        guard_with_descriptors,
    ),
    Scenario(
        "guard SIGKILL",
        guard_signal(signal.SIGKILL),
        RESPAWN_S,
        grows("kvwatt_guard_errors_total"),
        "guard: ended with status -9",
        stays=False,
    ),
    Scenario(
        "guard SIGSTOP",
        guard_signal(signal.SIGSTOP),
        WATCHDOG_S,
        grows("kvwatt_guard_errors_total"),
        "does not answer: ended",
        stays=False,
    ),
    Scenario(
        "guard restarted under load",
        guard_signal(signal.SIGTERM),
        FAULT_S,
        grows("kvwatt_guard_errors_total"),
        "guard: ended with status 0",
        stays=False,
    ),
    Scenario(
        "guard and daemon SIGKILL, then the next start",
        both_killed,
        START_S,
        becomes(1.0, "kvwatt_mode", mode="active"),
        "resetting the clocks an earlier guard set",
        stays=False,
    ),
)
