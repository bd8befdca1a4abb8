"""Two real vLLM servers behind a real HAProxy: put to sleep, woken, stopped and started under load.

vLLM computes on the CPU here, where sleep holds requests back as on a GPU and frees no memory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from plant_model import free_port
from vllm_server import VllmServer, make_model, vllm_python

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path += [str(REPOSITORY / "bench"), str(REPOSITORY / "tests" / "haproxy")]

from haproxy_process import Haproxy, NoHaproxyError, find  # noqa: E402

from kvwatt.pool import ActionKind, MemberStatus, PoolAction  # noqa: E402
from kvwatt_sim.loadgen import LoadOptions  # noqa: E402
from kvwattd.instances.backend import BackendState  # noqa: E402
from kvwattd.instances.haproxy import HaproxyRouter, HaproxySettings  # noqa: E402
from kvwattd.instances.journal import Journal  # noqa: E402
from kvwattd.instances.probe_http import HttpProbe  # noqa: E402
from kvwattd.instances.process import Launch, ProcessBackend  # noqa: E402
from kvwattd.instances.process_state import StopLimits  # noqa: E402
from kvwattd.instances.scaler import Scaler, ScalerParams  # noqa: E402
from kvwattd.instances.vllm_sleep import SleepBackend, SleepParams  # noqa: E402
from scaling_load import Load  # noqa: E402

# Three minutes on a quiet machine, so not part of CI.
pytestmark = pytest.mark.vllm_pool

STEP_S = 0.5
UP_LIMIT_S = 240.0
RATE_PER_S = 0.7
PARAMS = ScalerParams(minimum=1, start_timeout_s=UP_LIMIT_S, quiet_looks=2, end_timeout_s=40.0, retry_s=1.0)

_UP = {BackendState.RUNNING, BackendState.STOPPING}


class Pair:
    """Servers a and b, their router and the scaler."""

    def __init__(self, folder: Path, model: Path) -> None:
        ports = {"a": free_port(), "b": free_port()}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        launches = {name: _launch(folder, model, name, port) for name, port in ports.items()}
        processes = ProcessBackend(
            folder / "instances", launches, limits=StopLimits(40.0, 20.0), deadline_s=20.0
        )
        self._processes = processes
        self.backend = SleepBackend(processes, urls, SleepParams(sleep_s=30.0, wake_s=30.0))
        self.proxy = Haproxy(folder / "haproxy", ports, check="1s")
        self.router = HaproxyRouter(HaproxySettings([self.proxy.socket], "vllm", {"a": "a", "b": "b"}))
        self.probe = HttpProbe(urls, look_s=3.0, warm_up_s=60.0)
        self.scaler = Scaler(
            {"a": "tp1", "b": "tp1"},
            self.backend,
            self.router,
            self.probe,
            Journal(folder / "instances.json"),
            PARAMS,
            time.monotonic,
            time.time,
        )
        self.told: list[str] = []

    def status(self, name: str) -> MemberStatus:
        return next(m.status for m in self.scaler.members() if m.name == name)

    async def step(self) -> None:
        await self.scaler.step()
        self.told += [f"{e.at_s:.1f} {e.member} {e.status}: {e.reason}" for e in self.scaler.take_events()]
        await asyncio.sleep(STEP_S)

    async def until(self, name: str, *wanted: MemberStatus, limit_s: float = 60.0) -> MemberStatus:
        async with asyncio.timeout(limit_s):
            while self.status(name) not in wanted:
                await self.step()
        return self.status(name)

    async def order(self, name: str, action: ActionKind) -> None:
        """Again until it is taken: a member that was just admitted counts from the next look on."""
        async with asyncio.timeout(20.0):
            while await self.scaler.apply([PoolAction(name, action, "a test")]):
                await self.step()

    async def close(self) -> None:
        await self.scaler.close()
        for name in ("a", "b"):
            await self._processes.stop(name)
        async with asyncio.timeout(60.0):
            while {*(await self._processes.states()).values()} & _UP:  # noqa: ASYNC110
                await asyncio.sleep(0.3)
        await self.backend.close()
        await self.probe.close()
        self.proxy.close()


def _launch(folder: Path, model: Path, name: str, port: int) -> Launch:
    server = VllmServer(
        vllm_python(),
        model,
        folder / "none",
        port,
        folder / f"{name}.log",
        worker=None,
        options={"--max-model-len": 1024, "--shutdown-timeout": 1},
    )
    environment = server._environment() | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return Launch(tuple(server._command()), environment=environment)


async def test_no_request_is_lost_by_scaling_real_servers(tmp_path: Path) -> None:
    """Sleep (where this vLLM can), wake, stop and start: every request is answered in full."""
    try:
        find()
    except NoHaproxyError as error:
        pytest.skip(str(error))
    model = make_model(vllm_python(), tmp_path / "model")
    pair = Pair(tmp_path, model)
    await asyncio.to_thread(pair.proxy.start)
    options = LoadOptions(model="tiny", exact_lengths=True)
    load = Load(pair.proxy.url, RATE_PER_S, 1, options)
    outcome = None
    try:
        await pair.step()
        for name in ("a", "b"):
            await pair.order(name, ActionKind.START)
        for name in ("a", "b"):
            await pair.until(name, MemberStatus.READY, limit_s=UP_LIMIT_S)
        load.start()
        await asyncio.sleep(2.0)
        slept = [await _sleep_and_wake(pair, name) for name in ("a", "b")]
        await pair.order("b", ActionKind.DRAIN_TO_STOP)
        await pair.until("b", MemberStatus.STOPPED)
        await pair.order("b", ActionKind.START)
        await pair.until("b", MemberStatus.READY, limit_s=UP_LIMIT_S)
        outcome = await load.stop()
    finally:
        print("\n".join(pair.told))
        await pair.close()
    print(f"slept {sum(slept)} times; {outcome}")
    assert (outcome.bad, outcome.examples) == (0, [])
    assert outcome.sent > 20


async def _sleep_and_wake(pair: Pair, name: str) -> bool:
    """Whether it slept; a vLLM that cannot goes back into service by itself."""
    await pair.order(name, ActionKind.DRAIN_TO_SLEEP)
    await pair.until(name, MemberStatus.DRAINING, MemberStatus.ASLEEP)
    reached = await pair.until(
        name, MemberStatus.ASLEEP, MemberStatus.FAILED, MemberStatus.READY, limit_s=90.0
    )
    if reached is MemberStatus.ASLEEP:
        assert name not in (await pair.router.admitted() or frozenset())
        await pair.order(name, ActionKind.WAKE)
    await pair.until(name, MemberStatus.READY, limit_s=90.0)
    return reached is MemberStatus.ASLEEP
