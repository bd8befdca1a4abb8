"""The guard under a supervisor that does what its unit file says: however it dies, default in time."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from host_stalls import lost_s
from supervisor import Supervisor

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.guard.client import GuardClient

UNIT = Path(__file__).parents[2] / "systemd" / "kvwatt-guard.service"
UUIDS = [demo_uuid(0), demo_uuid(1)]
WATCHDOG_S = 3.0
RESET_BOUND_S = 3.0
SLACK_S = 6.0  # a test machine may be busy with other things, and the stop hook is a program to be started
PATIENCE_S = 90.0


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[SimGpus]:
    """Two GPUs; locks come into force at once."""
    card = cards.load("l20", 1)
    specs = [replace(card.gpu_spec(uuid), switch_latency_s=0.0) for uuid in UUIDS]
    with SimGpus.create(tmp_path / "gpus", specs) as made:
        yield made


@pytest.fixture
async def supervisor(gpus: SimGpus, tmp_path: Path) -> AsyncIterator[Supervisor]:
    """The guard's unit, with its folders below one of the test's own."""
    configuration = tmp_path / "guard.toml"
    configuration.write_text(f'gpus = ["{UUIDS[0]}", "{UUIDS[1]}"]\nsocket = "{tmp_path}/guard.sock"\n')
    places = {
        "/etc/kvwatt/guard.toml": str(configuration),
        "/var/lib/kvwatt-guard/state.json": str(tmp_path / "state.json"),
    }

    def command(arguments: list[str]) -> list[str]:
        program, *rest = arguments
        assert program == "/opt/kvwatt/bin/kvwatt-guard"
        return [sys.executable, "-m", "kvwattd.guard", *(places.get(word, word) for word in rest)]

    made = Supervisor(UNIT, tmp_path, command, {**os.environ, **env_for(build(), gpus.path)})
    await made.start()
    yield made
    gpus.clear_faults(0)
    await made.stop()
    assert _locks(gpus) == [None, None]


def _locks(gpus: SimGpus) -> list[tuple[int, int] | None]:
    return [gpus.lock_mhz(i) for i in range(2)]


async def _controlled(tmp_path: Path) -> GuardClient:
    client = GuardClient(tmp_path / "guard.sock", timeout_s=PATIENCE_S)
    await client.connect()
    await client.set_clocks(UUIDS, 900, 1200)
    return client


async def _within(holds: Callable[[], bool], limit_s: float) -> None:
    """What the machine stood still meanwhile is added."""
    since_s = time.monotonic()
    while not holds():
        late_s = time.monotonic() - since_s
        assert late_s <= limit_s + lost_s(since_s), f"not after {late_s:.1f} s"
        await asyncio.sleep(0.02)


async def _served_again(supervisor: Supervisor, tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await supervisor.ready.wait()
    await (await _controlled(tmp_path)).close()


async def test_killed(supervisor: Supervisor, gpus: SimGpus, tmp_path: Path) -> None:
    """SIGKILL: the stop hook resets within three seconds, another guard serves."""
    client = await _controlled(tmp_path)
    supervisor.kill(signal.SIGKILL)
    await _within(lambda: _locks(gpus) == [None, None], RESET_BOUND_S + SLACK_S)
    await client.close()
    await _within(lambda: len(supervisor.exits) == 1, PATIENCE_S)
    await _served_again(supervisor, tmp_path)
    assert supervisor.exits == [-signal.SIGKILL]


async def test_stopped(supervisor: Supervisor, gpus: SimGpus, tmp_path: Path) -> None:
    """SIGSTOP: the missed watchdog kills it, and then as above."""
    client = await _controlled(tmp_path)
    supervisor.kill(signal.SIGSTOP)
    await _within(lambda: _locks(gpus) == [None, None], WATCHDOG_S + RESET_BOUND_S + SLACK_S)
    assert supervisor.watchdog_kills == 1
    await client.close()
    await _within(lambda: len(supervisor.exits) == 1, PATIENCE_S)
    await _served_again(supervisor, tmp_path)


async def test_a_sound_guard_is_left_alone(supervisor: Supervisor, tmp_path: Path) -> None:
    """Over more than a watchdog's period, controlled and idle, the guard says it is alive."""
    client = await _controlled(tmp_path)
    await client.close()
    await asyncio.sleep(1.3 * WATCHDOG_S)
    assert supervisor.exits == []


async def test_a_configuration_that_breaks_meanwhile(
    supervisor: Supervisor, gpus: SimGpus, tmp_path: Path
) -> None:
    """The stop hook resets all the same; the guard is not started over and over."""
    client = await _controlled(tmp_path)
    (tmp_path / "guard.toml").write_text("gpus = [")
    supervisor.kill(signal.SIGKILL)
    await _within(lambda: _locks(gpus) == [None, None], RESET_BOUND_S + SLACK_S)
    await _within(lambda: supervisor.failed, PATIENCE_S)
    assert supervisor.exits == [-signal.SIGKILL, 2]
    await client.close()
