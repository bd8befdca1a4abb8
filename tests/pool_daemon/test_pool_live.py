"""The pool end to end: real processes are started and stopped under load, and no request is lost."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import httpx
from pool_stage import PoolStage

QUIET_PER_S, BUSY_PER_S = 3.0, 26.0


async def test_a_pool_follows_its_load_its_operator_and_survives_its_daemon(tmp_path: Path) -> None:
    """One server under little load, two under much, one again; none lost; a restart adopts; by hand both."""
    with ExitStack() as stack:
        stage = PoolStage(stack, tmp_path)
        await stage.until(lambda: stage.count("ready") == 1, "the minimum does not come")
        async with stage.load(QUIET_PER_S) as quiet:
            known = "the capacity of one instance does not become known"
            await stage.until(lambda: stage.pool()["kinds"][0]["capacity_per_s"] is not None, known)
            assert stage.count("ready") == 1 and stage.count("stopped") == 1
            stage.keep_capacity()
        async with stage.load(BUSY_PER_S) as busy:
            await stage.until(lambda: stage.count("ready") == 2, "no second one comes")
        async with stage.load(QUIET_PER_S) as after:
            await stage.until(lambda: stage.count("stopped") == 1, "none of the two goes")
            running = stage.pids()

            stage.daemon.kill()
            stage.start()
            await stage.until(lambda: stage.count("ready") == 1, "what runs is not adopted")
            assert stage.pids() == running
        for load in (quiet, busy, after):
            assert load.records and [r.error for r in load.records if r.error] == []
            assert all(record.done_s is not None for record in load.records)

        bad = stage.put("/api/v1/pool/scale", {"instances": 3, "duration_s": 60})
        assert bad.status_code == 409 and "pool.maximum" in bad.json()["accepted"]
        assert stage.put("/api/v1/pool/scale", {"instances": 2, "duration_s": 300}).status_code == 200
        await stage.until(lambda: stage.count("ready") == 2, "two by hand do not come")
        _pages(stage, "500")
        await stage.until(lambda: stage.pool()["fault"] is not None, "the outage is not told")
        assert stage.put("/api/v1/pool/scale", {"instances": 1, "duration_s": 300}).status_code == 200
        plans = sum(stage.pool()["plans_total"].values())
        await stage.until(lambda: sum(stage.pool()["plans_total"].values()) > plans + 6, "it plans no more")
        assert stage.count("ready") == 2

        assert stage.put("/api/v1/mode", {"mode": "shadow"}).status_code == 200
        _pages(stage, "ok")
        plans = sum(stage.pool()["plans_total"].values())
        await stage.until(lambda: sum(stage.pool()["plans_total"].values()) > plans + 12, "it plans no more")
        assert not stage.pool()["acting"]
        # A machine that stands still for a moment makes pages old: that passes, an outage would not.
        await stage.until(lambda: stage.pool()["fault"] is None, "a fault that is over is told")
        await stage.until(lambda: "failsafe" not in stage.regimes(), "no control of a sound server")
        await stage.until(lambda: stage.count("ready") == 2, "in shadow mode one was stopped")


def _pages(stage: PoolStage, mode: str) -> None:
    """How the pages of both servers answer from now on; the servers serve on."""
    for port in stage.fleet.ports:
        httpx.post(f"http://127.0.0.1:{port}/_sim/metrics", json={"mode": mode}, timeout=30.0)
