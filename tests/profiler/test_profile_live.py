"""`kvwatt profile --live`: beside real requests, one clock down at a time, under the promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kvwatt.profiles import parse_csv
from kvwatt_sim.cards import load
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.server.launch import SimServer
from kvwattd.profiler.plan import clock_ladder

PROGRAM = "import typer; from kvwattd.commands.profile import profile; typer.run(profile)"
CLOCKS = 4
TOP_MHZ = 2520


@pytest.fixture(scope="module")
def server() -> Iterator[SimServer]:
    with SimServer(card="l20", max_num_seqs=8, max_num_batched_tokens=512) as running:
        yield running


@contextmanager
def traffic(server: SimServer, streams: int) -> Iterator[None]:
    """Somebody's requests, each followed by the next, for as long as the block lasts."""
    over = threading.Event()

    def serve() -> None:
        body = {"prompt": [5] * 32, "max_tokens": 120, "stream": True}
        while not over.is_set():
            url = f"{server.base_url}/v1/completions"
            with httpx.stream("POST", url, json=body, timeout=180, trust_env=False) as response:
                for _ in response.iter_bytes():
                    if over.is_set():
                        return

    threads = [threading.Thread(target=serve) for _ in range(streams)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def explore(server: SimServer, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    fixed = ["--url", server.base_url, "--gpu", "0", "--spawn-guard", "-o", str(output), "--live"]
    arguments = [*fixed, "--clocks", str(CLOCKS), "--minutes", "0.3", *more]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, **server.env(), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def locked_mhz(server: SimServer, since: int) -> list[int]:
    """Every clock that was set since so many setter calls, in order."""
    gpus = SimGpus.open(server.state)
    try:
        assert gpus.lock_mhz(0) is None
        calls = gpus.setter_log()[since:]
    finally:
        gpus.close()
    locks = [call.args for call in calls if "SetGpuLockedClocks" in call.call]
    return [max(int(number) for number in re.findall(r"\d+", arguments)) for arguments in locks]


def setter_calls(server: SimServer) -> int:
    gpus = SimGpus.open(server.state)
    try:
        return len(gpus.setter_log())
    finally:
        gpus.close()


def test_it_learns_from_live_traffic_one_clock_down_at_a_time(server: SimServer, tmp_path: Path) -> None:
    """Rows of the traffic's own batch at lower clocks, no request added, and no rung skipped on the way."""
    before = setter_calls(server)
    with traffic(server, 3):
        result = explore(server, tmp_path / "live.csv")
    assert result.returncode == 0, result.stderr
    rows = parse_csv((tmp_path / "live.csv").read_text())
    assert len({row.clock_mhz for row in rows}) >= 2
    assert all(1 <= row.decode_batch <= 3 for row in rows)
    ladder = clock_ladder(load("l20").supported_mhz, 0.3 * TOP_MHZ, TOP_MHZ, CLOCKS)
    first = list(dict.fromkeys(locked_mhz(server, before)))
    assert tuple(first) == ladder[1 : 1 + len(first)]
    assert len(first) >= 2


def test_no_clock_is_lowered_where_a_promise_could_break(server: SimServer, tmp_path: Path) -> None:
    """With a TBT limit just above what the traffic gets at default, it only watches."""
    before = setter_calls(server)
    with traffic(server, 3):
        result = explore(server, tmp_path / "live.csv", "--slo-tbt", "0.025")
    assert result.returncode == 0, result.stderr
    assert locked_mhz(server, before) == []
    assert {row.clock_mhz for row in parse_csv((tmp_path / "live.csv").read_text())} == {TOP_MHZ}
