"""Plays a ledger in a process of its own, kills it at random moments, and says what was lost."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kvwattd.ledger.reading import read

PLAYER = Path(__file__).with_name("ledger_player.py")


@dataclass(frozen=True, slots=True)
class Killed:
    """Numbers of the newest interval handed over, told to be kept, and found; what else was found wrong."""

    closed: int
    kept: int
    found: int
    wrong: str | None
    time_lost_s: float  # from the close of the newest that was found to the kill

    @property
    def lost(self) -> int:
        """Intervals that had been handed over; the open one is lost besides."""
        return max(self.closed - self.found, 0)


def kill_once(path: Path, rng: random.Random, period_s: float, most_s: float) -> Killed:
    """Start where the file ends, kill with SIGKILL within `most_s` of the first interval, and look."""
    before = _numbers(path)
    first = (before[-1] if before else 0) + 1
    environment = {**os.environ, "PYTHONPATH": str(PLAYER.parent)}
    command = [sys.executable, str(PLAYER), str(path), str(first), str(period_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    told = process.stdout.readline()
    time.sleep(rng.uniform(0.0, most_s))
    killed_s = time.monotonic()
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read()
    process.wait()
    process.stdout.close()
    closed = {int(n): float(at) for n, at in re.findall(r"closed (\d+) (\S+)\n", told)}
    kept = max(map(int, re.findall(r"kept (\d+)\n", told)), default=first - 1)
    after = _numbers(path)
    found = after[-1] if after else 0
    # Where nothing of this life was kept, the time lost began with its first interval, a period earlier.
    since_s = closed.get(found, min(closed.values()) - period_s)
    return Killed(max(closed), kept, found, _wrong(path, before, after), max(killed_s - since_s, 0.0))


def _numbers(path: Path) -> list[int]:
    return [one.energy_mj for one in read(path, 0, 2**62)] if path.exists() else []


def _wrong(path: Path, before: list[int], after: list[int]) -> str | None:
    connection = sqlite3.connect(path)
    told = connection.execute("PRAGMA integrity_check").fetchone()[0]
    connection.close()
    if told != "ok":
        return str(told)
    if after[: len(before)] != before:
        return "rows from before are gone"
    return None if after == list(range(1, len(after) + 1)) else "rows are missing or twice"
