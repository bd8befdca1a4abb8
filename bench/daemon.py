"""What the daemon costs its host: CPU and memory at the default tick beside one busy server.

    python bench/daemon.py [--quick] [--json FILE]

The real daemon and its guard as processes, a simulated server under streamed load, default tick and
poll. The rival in the same run is the usual way to watch a server: prometheus_client parsing the whole
page as often as we poll, in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bars import Bar, show, write
from kvwatt_sim.cards import load
from kvwatt_sim.demo.daemon import Daemon
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.demo.plant import libraries, start_plants
from kvwatt_sim.demo.settings import CARD, SLO
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions
from kvwatt_sim.workload import generate

RATE_PER_S = 1.5
WARM_UP_S = 8.0
RIVAL = """
import sys, time, urllib.request
from prometheus_client.parser import text_string_to_metric_families
while True:
    page = urllib.request.urlopen(sys.argv[1] + "/metrics").read().decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            pass
    time.sleep(0.5)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU as a share of one core, and resident memory at its largest."""

    cpu_share: float
    rss_mb: float


class Watch:
    """A process between two moments."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._cpu_s = self._spent_s()
        self._since_s = time.monotonic()
        self._rss = 0

    def _spent_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def look(self) -> None:
        self._rss = max(self._rss, self._process.memory_info().rss)

    def cost(self) -> Cost:
        self.look()
        elapsed_s = time.monotonic() - self._since_s
        return Cost((self._spent_s() - self._cpu_s) / elapsed_s, self._rss / 1e6)


def measure(seconds: float) -> dict[str, Cost]:
    """Run server, load, daemon and rival; cost of each process over `seconds` under load."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvwatt-bench-")))
        (plant,) = start_plants(stack, libraries(), folder, ["bench"])
        daemon = stack.enter_context(Daemon(plant, cached_model(load(CARD)), folder, SLO))
        daemon.wait_active(30.0)
        rival = subprocess.Popen([sys.executable, "-c", RIVAL, plant.server.base_url])
        stack.callback(rival.kill)
        guard = psutil.Process(daemon.pid).children()[0].pid
        return asyncio.run(_under_load(plant.server.base_url, daemon.pid, guard, rival.pid, seconds))


async def _under_load(url: str, daemon: int, guard: int, rival: int, seconds: float) -> dict[str, Cost]:
    requests = generate(RATE_PER_S, WARM_UP_S + seconds, seed=1)
    generator = LoadGenerator(url, requests, LoadOptions())
    load_task = asyncio.create_task(generator.run(time.monotonic() + 0.2))
    await asyncio.sleep(WARM_UP_S)
    watches = {"kvwatt daemon": Watch(daemon), "kvwatt guard": Watch(guard), "whole page, 2/s": Watch(rival)}
    for _ in track(range(int(seconds)), description="under load", transient=True):
        await asyncio.sleep(1.0)
        for watch in watches.values():
            watch.look()
    load_task.cancel()
    await asyncio.gather(load_task, return_exceptions=True)
    return {name: watch.cost() for name, watch in watches.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help="20 s under load instead of 120 s")
    arguments = parser.parse_args()
    costs = measure(20.0 if arguments.quick else 120.0)
    shown = Table(title="Cost on the host, one instance under load, default tick and poll")
    for column in ("", "CPU, % of one core", "RSS, MB"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, cost in costs.items():
        shown.add_row(name, f"{100 * cost.cpu_share:.2f}", f"{cost.rss_mb:.0f}")
    Console().print(shown)
    daemon = costs["kvwatt daemon"]
    bars = [
        Bar("daemon CPU, % of one core", 100 * daemon.cpu_share, 3.0, "lower"),
        Bar("daemon RSS, MB", daemon.rss_mb, 200.0, "lower"),
    ]
    show(bars, "Bars")
    write(arguments.json, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
