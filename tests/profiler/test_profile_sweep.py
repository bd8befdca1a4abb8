"""`kvwatt profile` against a simulated server, simulated NVML and the real guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from kvwatt.profiles import parse_csv, parse_notes, table_of
from kvwatt.training import Origin, fit
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.server.launch import SimServer

PROGRAM = "import typer; from kvwattd.commands.profile import profile; typer.run(profile)"
SMALL = ("--max-num-seqs", "4", "--max-num-batched-tokens", "512", "--clocks", "4", "--window", "0.3")


@pytest.fixture(scope="module")
def server() -> Iterator[SimServer]:
    with SimServer(card="l20", max_num_seqs=4, max_num_batched_tokens=512) as running:
        yield running


@dataclass(frozen=True)
class Guard:
    socket: Path
    pid: int


@pytest.fixture
def guard(server: SimServer, tmp_path: Path) -> Iterator[Guard]:
    socket = tmp_path / "g.sock"
    arguments = [
        "--socket",
        str(socket),
        "--state-file",
        str(tmp_path / "state.json"),
        "--gpu",
        server.uuids[0],
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "kvwattd.guard", *arguments], env={**os.environ, **server.env()}
    )
    deadline_s = time.monotonic() + 90
    while not socket.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    yield Guard(socket, process.pid)
    process.terminate()
    process.wait(90)


def command(server: SimServer, guard: Guard | None, output: Path, *more: str) -> list[str]:
    guarded = ["--guard-socket", str(guard.socket)] if guard is not None else ["--spawn-guard"]
    fixed = ["--url", server.base_url, "--gpu", "0", *guarded, "-o", str(output)]
    return [sys.executable, "-c", PROGRAM, *fixed, *SMALL, *more]


def run(arguments: Sequence[str], server: SimServer) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **server.env(), "COLUMNS": "200"}
    return subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def is_unlocked(server: SimServer, within_s: float = 60.0) -> bool:
    deadline_s = time.monotonic() + within_s
    gpus = SimGpus.open(server.state)
    try:
        while gpus.lock_mhz(0) is not None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return gpus.lock_mhz(0) is None
    finally:
        gpus.close()


def setters(server: SimServer) -> list[int]:
    gpus = SimGpus.open(server.state)
    try:
        return [call.pid for call in gpus.setter_log()]
    finally:
        gpus.close()


def test_a_short_sweep_gives_a_table_that_can_be_trained_on(
    server: SimServer, guard: Guard, tmp_path: Path
) -> None:
    """In a quarter of a minute: several clocks, decode, prefill and idle rows; clocks reset after it."""
    output = tmp_path / "profile.csv"
    before = len(setters(server))
    result = run(command(server, guard, output, "--minutes", "0.3"), server)
    assert result.returncode == 0, result.stderr
    assert is_unlocked(server)
    assert set(setters(server)[before:]) == {guard.pid}
    text = output.read_text()
    rows = parse_csv(text)
    assert parse_notes(text)["hardware"] == "NVIDIA L20"
    assert {"decode", "prefill", "idle"} <= {row.kind for row in rows}
    assert len({row.clock_mhz for row in rows}) == 4
    model = fit(table_of(rows), Origin("NVIDIA L20"))
    slow, fast = model.step_time_s([765.0, 2520.0], 0, 0, 512)
    assert 2.0 < slow / fast < 4.0


def test_the_clock_is_not_lowered_where_the_promise_could_break(
    server: SimServer, guard: Guard, tmp_path: Path
) -> None:
    """With a TBT limit just above what the top clock gives, nothing is decoded at a lower one."""
    output = tmp_path / "profile.csv"
    result = run(command(server, guard, output, "--minutes", "0.15", "--slo-tbt", "0.024"), server)
    assert result.returncode == 0, result.stderr
    decoded = {row.clock_mhz for row in parse_csv(output.read_text()) if row.kind == "decode"}
    assert decoded == {2520}
    assert "TBT" in result.stderr and "limit 0.024 s" in result.stderr


def test_a_server_with_other_traffic_is_refused(server: SimServer, guard: Guard, tmp_path: Path) -> None:
    """No clock is written while somebody else's request runs; the message says what to do."""
    before = len(setters(server))
    body = {"prompt": [5] * 32, "max_tokens": 3000, "stream": True}
    with httpx.stream("POST", f"{server.base_url}/v1/completions", json=body, timeout=180):
        result = run(command(server, guard, tmp_path / "profile.csv", "--minutes", "0.2"), server)
    assert result.returncode == 1
    assert "--live" in result.stderr
    assert len(setters(server)) == before


def test_an_interrupt_keeps_the_rows_and_resets_the_clocks(server: SimServer, tmp_path: Path) -> None:
    """SIGINT in the middle of a sweep with its own guard: exit 130, rows so far on disk, driver default."""
    output = tmp_path / "profile.csv"
    process = subprocess.Popen(
        command(server, None, output, "--minutes", "5"),
        env={**os.environ, **server.env()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 180
        while not (output.exists() and len(output.read_text().splitlines()) >= 7):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        # A model that is being judged in a thread is finished first: long where cores are busy.
        assert process.wait(180) == 130
    finally:
        process.kill()
        process.wait()
    assert len(parse_csv(output.read_text())) >= 3
    assert is_unlocked(server)


def test_a_missing_guard_is_told(server: SimServer, tmp_path: Path) -> None:
    """Without a guard nothing is measured and nothing written."""
    arguments = [sys.executable, "-c", PROGRAM, "--url", server.base_url, "--gpu", "0"]
    arguments += ["--guard-socket", str(tmp_path / "none.sock"), "-o", str(tmp_path / "p.csv")]
    result = run(arguments, server)
    assert result.returncode == 1
    assert "none.sock" in result.stderr
    assert not (tmp_path / "p.csv").exists()
