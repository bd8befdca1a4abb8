from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

COMMAND = [sys.executable, "-m", "kvwattd", "demo"]


def test_the_demo_compares_two_plants_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The command serves both plants the same requests, writes its JSON and stops all it started."""
    file = tmp_path / "demo.json"
    done = subprocess.run(
        [*COMMAND, "--seconds", "30", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    baseline, kvwatt = document["baseline"], document["kvwatt"]
    assert baseline["requests"] == kvwatt["requests"] > 0
    assert baseline["failed"] == kvwatt["failed"] == 0
    assert baseline["clock_changes"] == 0
    assert baseline["energy_j"] > 0.0 and kvwatt["energy_j"] > 0.0
    assert document["energy_saved_ratio"] == pytest.approx(1 - kvwatt["energy_j"] / baseline["energy_j"])
    assert set(document["slo_attainment"]) == {"ttft", "tbt", "e2e"}
    assert "Energy saved against driver default" in done.stdout
    assert "(warm-up) | driver default 2520 MHz" in done.stdout
    assert not list(tmp_path.glob("kvwatt-demo-*"))
    assert _left_over(tmp_path) == []


def test_interrupting_stops_everything(tmp_path: Path) -> None:
    """On SIGTERM, which takes the way of Ctrl-C, servers, daemon and guard end and the folder is gone."""
    with subprocess.Popen(
        [*COMMAND, "--seconds", "120"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "sent (warm-up)" in line:
                break
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=180)
    assert len(started) == 4  # two servers, the daemon and its guard
    assert process.returncode == 130
    assert "kvwatt demo: stopped" in errors
    assert not list(tmp_path.glob("kvwatt-demo-*"))
    assert _left_over(tmp_path) == []


def test_a_missing_compiler_is_told(tmp_path: Path) -> None:
    """Without a C compiler and without cached libraries the command says what to install."""
    done = subprocess.run(
        [*COMMAND, "--seconds", "30"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CC": "", "PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "no C compiler found" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_option_is_told() -> None:
    """An option out of range ends the command at once with its name and value."""
    done = subprocess.run([*COMMAND, "--load", "7"], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    assert "--load 7" in done.stderr


def _left_over(folder: Path) -> list[str]:
    """Command lines of processes that name the folder; a guard may take a lease time to end by itself."""
    deadline_s = time.monotonic() + 60.0
    while True:
        found = [" ".join(args) for args in _command_lines() if any(str(folder) in arg for arg in args)]
        if not found or time.monotonic() > deadline_s:
            return found
        time.sleep(0.1)


def _command_lines() -> list[list[str]]:
    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
