"""The real daemon's ledger: windows at driver default under way, SIGKILL, a second life, a report."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from daemon_process import eventually
from fault_stage import Stage
from host_stalls import lost_s

from kvwatt.holdout import HELD, Arm
from kvwattd.ledger import proof
from kvwattd.ledger.entry import Entry
from kvwattd.ledger.reading import read

INTERVAL_S = 1.0
OFTEN = {
    "KVWATT_LEDGER__INTERVAL_S": str(INTERVAL_S),
    "KVWATT_HOLDOUT__SHARE": "0.5",
    "KVWATT_HOLDOUT__WINDOW_S": "2",
    "KVWATT_HOLDOUT__WARMUP_S": "0.7",
    "KVWATT_HOLDOUT__SETTLE_S": "0.3",
}


def rows_of(stage: Stage) -> list[Entry]:
    return read(stage.daemon.folder / "state" / "ledger.db", 0, 2**62)


def windows(stage: Stage) -> int:
    return int(stage.daemon.metric("kvwatt_holdout_windows_total", instance="sim"))


def held_is_default(stage: Stage) -> bool:
    """Seen at default while the daemon says that it holds it there to measure."""
    active = stage.daemon.metric("kvwatt_holdout_active", instance="sim") == 1.0
    return active and stage.held_mhz is None and stage.daemon.instance()["regime"] == "active"


def test_windows_a_kill_and_a_second_life(staging) -> None:  # noqa: ANN001
    """What was kept before the kill is whole; the next life goes on in the same file."""
    with staging(environment=OFTEN) as stage:
        stage.control()
        eventually(lambda: held_is_default(stage), stage.daemon.describe, 180.0)
        eventually(lambda: windows(stage) >= 3 and stage.held_mhz is not None, stage.daemon.describe, 180.0)
        status = stage.daemon.status()
        killed_s = time.time()
        stage.daemon.signal(signal.SIGKILL)
        stage.daemon.process.wait()
        first = rows_of(stage)
        path = stage.daemon.folder / "state" / "ledger.db"
        with closing(sqlite3.connect(path)) as ledger:
            assert ledger.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        stalled_s = lost_s(time.monotonic() - 30.0)
        assert killed_s - max(row.end_ms for row in first) / 1e3 < 2 * INTERVAL_S + 1.0 + stalled_s
        used_j = status["instances"][0]["energy_j"]
        lost_j = 275.0 * stalled_s  # at its highest power
        assert used_j - 1000.0 - lost_j < proof.energy_j(first) < used_j + 300.0 + lost_j
        assert len(proof.windows_of(first)) >= 2
        held = [row for row in first if row.arm is Arm.DEFAULT]
        top = stage.gpus.spec(0).boost_mhz
        assert max(row.clock_max_mhz for row in held) == top
        controlled = proof.controlled(first)
        assert sum(r.clock_mhz_ms for r in controlled) < 0.95 * top * sum(r.time_ms for r in controlled)

        stage.daemon.start()
        stage.control()
        eventually(lambda: windows(stage) >= 2, stage.daemon.describe, 180.0)
        assert stage.daemon.metric("kvwatt_ledger_alarm") == 0.0
        assert stage.daemon.stop() == 0
        both = rows_of(stage)
        assert both[: len(first)] == first
        assert len({row.run for row in both}) == 2
        assert any(row.arm in HELD for row in both[len(first) :])
        told = subprocess.run(
            [
                sys.executable,
                "-m",
                "kvwattd",
                "report",
                "--config",
                stage.daemon.config,
                "--from",
                "1h",
                "--json",
            ],
            capture_output=True,
            check=True,
            text=True,
        )
        document = json.loads(told.stdout)
        assert abs(document["total"]["energy_j"] - proof.energy_j(both)) < 1.0
        assert document["total"]["savings"][0]["windows"] == len(proof.windows_of(both))
