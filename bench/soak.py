"""A daemon that runs for long, and one that has many instances: nothing grows, the tick is kept.

    python bench/soak.py [--quick] [--part day|minutes|fleet] [--json FILE]

day      24 hours of one instance's life with time and telemetry injected (--quick: 2 hours): objects,
         memory and log lines of the second half against the first
minutes  the real daemon at ten times its tick beside a busy simulated server, 10 minutes (--quick: 2):
         memory, descriptors, threads, asyncio tasks, log lines
fleet    1 to 1,000 instances in one daemon on one core, a tick a second, a page of each every five seconds;
         pages are parsed as they come, the HTTP exchange and NVML are left out
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import statistics
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
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.server.launch import SimServer

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / "tests" / name) for name in ("soak", "faults", "fuzz")]

from corpus import sim_page  # noqa: E402
from daemon_process import DaemonProcess  # noqa: E402
from fault_load import Load  # noqa: E402
from fault_stage import damageable  # noqa: E402
from simulated_fleet import CARD, Fleet, LogCount, objects  # noqa: E402

from kvwattd.telemetry.vllm_metrics import parse  # noqa: E402

HOUR_S = 3600.0
SIZES = (1, 10, 100, 1000)
TICK_S, POLL_S = 1.0, 5.0
MB = 1e6


@dataclass(frozen=True, slots=True)
class Reading:
    """What a process holds at one moment."""

    at_s: float
    rss_mb: float
    objects: int = 0
    lines: int = 0
    descriptors: int = 0
    threads: int = 0
    tasks: int = 0


def day(hours: int, folder: Path) -> tuple[list[Bar], Table]:
    """One instance, hour after hour."""
    counter = _counted_logs()
    fleet = Fleet(1, cached_model(load(CARD)), folder)
    me, readings = psutil.Process(), []
    for hour in track(range(hours * 2), description="simulated half hours", transient=True):
        fleet.advance(HOUR_S / 2)
        known = objects()
        readings.append(Reading((hour + 1) / 2, me.memory_info().rss / MB, known, counter.lines))
    shown = Table(title=f"{hours} simulated hours of one instance")
    for column in ("hours", "RSS, MB", "objects", "log lines"):
        shown.add_column(column, justify="right")
    for r in readings[:: max(len(readings) // 8, 1)] + readings[-1:]:
        shown.add_row(f"{r.at_s:g}", f"{r.rss_mb:.1f}", f"{r.objects:,}", str(r.lines))
    middle, last = readings[len(readings) // 2], readings[-1]
    first_half = middle.lines - readings[0].lines
    bars = [
        Bar(
            "day: objects, end over middle",
            last.objects / middle.objects,
            1.02,
            "lower",
        ),
        Bar("day: memory grown in the second half, MB", last.rss_mb - middle.rss_mb, 3.0, "lower"),
        Bar(
            "day: more log lines in the second half",
            last.lines - middle.lines - first_half,
            10,
            "lower",
        ),
        Bar("day: simulated hours", hours, 24, "higher"),
    ]
    return bars, shown


def minutes(seconds: float) -> tuple[list[Bar], Table]:
    """The real daemon with a tick of 10 ms and a page every 50 ms."""
    card, readings = load(CARD), []
    os.environ |= {"KVWATT_DAEMON__TICK_S": "0.01"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvwatt-soak-")))
        server = stack.enter_context(SimServer(card=CARD))
        stack.enter_context(Load(server.base_url))
        gpus = stack.enter_context(SimGpus.open(server.state))
        stage = stack.enter_context(damageable(server, gpus, cached_model(card), folder, poll_s=0.05))
        stage.control()
        started_s = time.monotonic()
        for _ in track(range(int(seconds / 5)), description="real time", transient=True):
            time.sleep(5.0)
            readings.append(_read(stage.daemon, time.monotonic() - started_s))
        status = stage.daemon.status()
    shown = Table(title="The real daemon at ten times its tick")
    for column in ("s", "RSS, MB", "descriptors", "threads", "tasks", "log lines"):
        shown.add_column(column, justify="right")
    for r in readings[:: max(len(readings) // 8, 1)] + readings[-1:]:
        counts = (r.descriptors, r.threads, r.tasks, r.lines)
        shown.add_row(f"{r.at_s:.0f}", f"{r.rss_mb:.1f}", *map(str, counts))
    return _minutes_bars(readings, status["ticks_total"] / status["uptime_s"], seconds), shown


def _minutes_bars(readings: list[Reading], ticks_per_s: float, seconds: float) -> list[Bar]:
    quarter, last = readings[len(readings) // 4], readings[-1]
    third = max(len(readings) // 3, 1)
    begin, end = readings[third : 2 * third], readings[-third:]

    def grown(name: str) -> float:
        middle = statistics.median(getattr(r, name) for r in begin)
        return statistics.median(getattr(r, name) for r in end) - middle

    lines_per_minute = (last.lines - quarter.lines) / max((last.at_s - quarter.at_s) / 60.0, 1e-9)
    return [
        Bar("minutes: memory grown over the last two thirds, MB", grown("rss_mb"), 3.0, "lower"),
        Bar("minutes: descriptors grown", grown("descriptors"), 1, "lower"),
        Bar("minutes: threads grown", grown("threads"), 1, "lower"),
        Bar("minutes: asyncio tasks grown", grown("tasks"), 1, "lower"),
        Bar("minutes: log lines a minute", lines_per_minute, 5.0, "lower"),
        Bar("minutes: ticks a second (of 100)", ticks_per_s, 50.0, "higher"),
        Bar("minutes: real time, s", seconds, 600, "higher"),
    ]


def _read(daemon: DaemonProcess, at_s: float) -> Reading:
    process = psutil.Process(daemon.process.pid)
    with process.oneshot():
        memory_mb = process.memory_info().rss / MB
        threads = process.num_threads()
    lines = daemon.log().count("\n")
    return Reading(at_s, memory_mb, 0, lines, process.num_fds(), threads, daemon.tasks())


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one size: processor seconds of each tick with all that is due in it, and memory."""

    count: int
    median_s: float
    longest_s: float
    rss_mb: float


def fleet_costs(ticks: int) -> list[Cost]:
    """Each size in a process of its own, on one core."""
    costs = []
    for count in (SIZES[0], *SIZES):  # the first time, the table may have to be made
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            cost = _fleet(count, ticks)
            os.write(theirs, f"{cost.median_s} {cost.longest_s} {cost.rss_mb}".encode())
            os._exit(0)
        os.close(theirs)
        os.waitpid(pid, 0)
        median_s, longest_s, rss_mb = map(float, os.read(ours, 200).split())
        os.close(ours)
        costs.append(Cost(count, median_s, longest_s, rss_mb))
    return costs[1:]


def _fleet(count: int, ticks: int) -> Cost:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _counted_logs()
    text = sim_page()
    fleet = Fleet(count, cached_model(load(CARD)), Path("/nonexistent"), TICK_S, POLL_S)
    fleet.advance(4 * POLL_S)
    spent_s = []
    for _ in range(ticks):
        fleet.clock.now_s += TICK_S
        now_s = fleet.clock.now_s
        due = fleet.due()
        pages = {number: fleet.page(number) for number in due}
        samples = [fleet.reading(number) for number in range(count)]
        before_s = time.process_time()
        for run, sample in zip(fleet.runs, samples, strict=True):
            run.on_gpu(sample, {})
        for number, page in pages.items():
            parse(text, now_s)
            fleet.daemon.on_page(fleet.runs[number], page, "v0.20")
        fleet.daemon.tick(now_s)
        spent_s.append(time.process_time() - before_s)
        fleet.confirm(due)
    gc.collect()
    return Cost(count, statistics.median(spent_s), max(spent_s), psutil.Process().memory_info().rss / MB)


def fleet(ticks: int) -> tuple[list[Bar], Table]:
    """Sizes against each other."""
    costs = fleet_costs(ticks)
    shown = Table(title="Instances in one daemon on one core: a tick a second, a page each every 5 s")
    for column in ("instances", "tick, ms", "longest, ms", "ms per instance", "RSS, MB", "MB per instance"):
        shown.add_column(column, justify="right")
    for c in costs:
        times = (f"{1e3 * c.median_s:.1f}", f"{1e3 * c.longest_s:.1f}", f"{1e3 * c.median_s / c.count:.2f}")
        more_mb = (c.rss_mb - costs[0].rss_mb) / max(c.count - 1, 1)
        shown.add_row(str(c.count), *times, f"{c.rss_mb:.0f}", f"{more_mb:.2f}")
    most, some = costs[-1], costs[-2]
    per = [(c.rss_mb - costs[0].rss_mb) / (c.count - 1) for c in (some, most)]
    bars = [
        Bar("fleet: longest tick of 1,000 instances, s of processor time", most.longest_s, TICK_S, "lower"),
        Bar("fleet: memory with 1,000 instances, MB", most.rss_mb, 600, "lower"),
        Bar(
            "fleet: processor time per instance, 1,000 over 100",
            most.median_s / most.count / (some.median_s / some.count),
            1.25,
            "lower",
        ),
        Bar("fleet: memory per instance, 1,000 over 100", per[1] / max(per[0], 1e-9), 1.25, "lower"),
    ]
    return bars, shown


def _counted_logs() -> LogCount:
    """Log lines of the daemon are counted instead of shown."""
    counter = LogCount()
    root = logging.getLogger()
    root.handlers[:] = [counter]
    root.setLevel(logging.INFO)
    return counter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 simulated hours, 2 real minutes, fewer ticks")
    parser.add_argument("--part", choices=("day", "minutes", "fleet"), help="only this one")
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    arguments = parser.parse_args()
    quick, bars = arguments.quick, []
    with tempfile.TemporaryDirectory(prefix="kvwatt-soak-") as folder:
        parts = {
            "fleet": lambda: fleet(10 if quick else 300),
            "day": lambda: day(2 if quick else 24, Path(folder)),
            "minutes": lambda: minutes(120.0 if quick else 600.0),
        }
        for name, part in parts.items():
            if arguments.part in (None, name):
                found, shown = part()
                Console().print(shown)
                bars += found
    show(bars, "Soak")
    write(arguments.json, bars)
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
