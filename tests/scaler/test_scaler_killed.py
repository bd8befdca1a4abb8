"""The scaler is killed (SIGKILL) amidst a start, a wake and a drain; `bench/scaling.py` does every phase.

Simulated servers over HTTP behind a real HAProxy, under load.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path += [str(REPOSITORY / "bench"), str(REPOSITORY / "tests" / "haproxy")]

from haproxy_process import NoHaproxyError, find  # noqa: E402

from kvwatt.pool import ActionKind, MemberStatus  # noqa: E402
from scaling_killed import Nursery, Task, kill_all  # noqa: E402
from scaling_load import Load  # noqa: E402
from scaling_stage import Stage  # noqa: E402

CYCLE = [
    (ActionKind.DRAIN_TO_STOP, "stopped", ["sessions:after:2"]),
    (ActionKind.START, "ready", ["admit:before:1"]),
]


async def test_a_killed_scaler_is_succeeded(tmp_path: Path) -> None:
    """What it left is adopted: nothing runs twice, nothing is orphaned, no request is lost, cut or hung."""
    try:
        find()
    except NoHaproxyError as error:
        pytest.skip(str(error))
    stage, nursery = Stage(tmp_path, "abc"), Nursery()
    try:
        await stage.step()
        for name in "abc":
            assert await stage.order(name, ActionKind.START)
        await stage.until(3)
        await stage.scaler.close()
        load = Load(stage.proxy.url, 2.0, seed=1)
        load.start()
        socket, urls = str(stage.fleet.socket), stage.fleet.urls
        base = Task(socket, urls, str(stage.proxy.socket), str(tmp_path / "instances.json"))
        found = await kill_all(nursery, base, "c", stage.machine.told, CYCLE)
        outcome = await load.stop()
        assert not found.wrong
        assert found.killed == 2
        assert (outcome.bad, outcome.examples) == (0, []), stage.checks()
        assert outcome.sent > 10
        await stage.step()
        assert set(stage.status().values()) == {MemberStatus.READY}
        told = (await stage.machine.told()).values()
        assert all(member["twice"] == member["cut"] == 0 for member in told)
    finally:
        nursery.close()
        await stage.close()
        await asyncio.sleep(0)
