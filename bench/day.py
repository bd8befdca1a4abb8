"""A day on several instances: what kvwatt saves with clocks and members, beside every rival.

    python bench/day.py [--quick] [--json FILE] [--plot FILE.html] [--jobs N] [--seeds 1 2 3 4]
                        [--hours H] [--settings ...] [--policies ...]

Virtual time. ServeGen's 24 hours of real request rates, Azure's 2023 conversations (both expected in
../shared/data/traces), on four L20 and on eight A100; docs/day.md says exactly what is compared. The day is
served in --hours (2.4; 24 is the day itself): its rates change that many times as fast while requests,
engines, starts and drains take as long as ever, so that a short day is harder than the real one. Energy is
that of all GPUs over the day, starts, drains and idle included.

In the table: percent saved against the reference members at driver default (mean and half the span over
seeds), the share within each promise on the worst seed, starts, and members that were ready on average. `!`:
below 99 %, does not count. Every finished day is kept in the cache folder until the code that it depends on
changes: a run that was stopped goes on. --quick: one setting, one seed, an hour, fewer policies and rates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table as Printed

from bars import show, write
from day_bars import Table, bars, changes
from day_plot import write_plot
from day_runs import AZURE, RATES, Task, run_all
from kvwatt_sim.day.policies import POLICIES
from kvwatt_sim.day.setting import NAMES
from kvwatt_sim.replay.scenario import SCORING_SEEDS

HOURS, QUICK_HOURS = 2.4, 0.8
QUICK_POLICIES = ("default", "keda-load", "paper", "kvwatt")
NOT_ON_A100 = ("keda-queue", "keda-load", "keda-kv")  # one engine serves there: nothing to scale
SWEEP_ON, SWEEP_HOURS = "l20-stopped", 1.0
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))
PROMISES = ("ttft", "tbt", "e2e")


def main() -> None:
    """Run what is missing, print the tables and the bars, write the files."""
    options = _options()
    for path in (RATES, AZURE):
        if not path.is_file():
            sys.exit(f"{path.resolve()}: not here; the comparison needs this trace")
    rows = run_all(list(_tasks(options)), options.jobs)
    table = Table(rows)
    console = Console(width=max(Console().width, 120))
    for setting in table.cells:
        console.print(_printed(table, setting, options))
    if table.constant:
        told = ", ".join(f"{task.share:g}: {changes(row)}" for task, row in table.constant.items())
        console.print(f"changes after settling, by share of the peak rate: {told}")
    found = bars(rows)
    show(found, f"A day, {_scope(options)}")
    write(
        options.json, found, scope=_scope(options), rows=[{**asdict(t), **asdict(r)} for t, r in rows.items()]
    )
    if options.plot is not None:
        write_plot(options.plot, table)


def _tasks(options: argparse.Namespace) -> Iterator[Task]:
    for setting in options.settings:
        for seed in options.seeds:
            for policy in options.policies:
                if setting != "a100" or policy not in NOT_ON_A100:
                    yield Task(setting, policy, seed, options.hours)
    if options.sweep:
        for share in SHARES[::5] if options.quick else SHARES:
            yield Task(SWEEP_ON, "constant", options.seeds[0], SWEEP_HOURS, share)


def _printed(table: Table, setting: str, options: argparse.Namespace) -> Printed:
    printed = Printed(title=f"{setting}, {_scope(options)}")
    for column in ("policy", "saved %", "MJ", "tokens/J x", *(f"{p} kept %" for p in PROMISES)):
        printed.add_column(column, justify="left" if column == "policy" else "right")
    for column in ("starts", "ready", "note"):
        printed.add_column(column)
    for policy in table.cells[setting]:
        printed.add_row(policy, *_cells(table, setting, policy))
    return printed


def _cells(table: Table, setting: str, policy: str) -> Iterator[str]:
    days = [row.day for row in table.cells[setting][policy].values()]
    saved = table.saved(setting, policy)
    mark = "" if table.counts(setting, policy) else " !"
    yield f"{fmean(saved):.1f}±{(max(saved) - min(saved)) / 2.0:.1f}{mark}"
    yield f"{fmean(day['energy_j'] for day in days) / 1e6:.2f}"
    yield f"{fmean(table.tokens_per_j(setting, policy)):.2f}"
    for promise in PROMISES:
        yield f"{100.0 * min(day['kept'][promise] for day in days):.2f}"
    yield f"{fmean(day['starts'] for day in days):.0f}"
    hours = [{kind: s / day["duration_s"] for kind, s in day["ready_s"].items()} for day in days]
    kinds = dict.fromkeys(kind for each in hours for kind in each)
    yield " ".join(f"{kind} {fmean(each.get(kind, 0.0) for each in hours):.2f}" for kind in kinds)
    yield days[0]["note"]


def _scope(options: argparse.Namespace) -> str:
    scope = f"{options.hours:g} h, seeds {' '.join(map(str, options.seeds))}"
    return f"quick: {scope}" if options.quick else scope


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--settings", nargs="+", choices=NAMES)
    parser.add_argument("--policies", nargs="+", choices=tuple(POLICIES))
    parser.add_argument("--sweep", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    options.seeds = options.seeds or list(SCORING_SEEDS[:1] if options.quick else SCORING_SEEDS)
    options.hours = options.hours or (QUICK_HOURS if options.quick else HOURS)
    options.settings = options.settings or (NAMES[:1] if options.quick else NAMES)
    options.policies = options.policies or (QUICK_POLICIES if options.quick else tuple(POLICIES))
    return options


if __name__ == "__main__":
    main()
