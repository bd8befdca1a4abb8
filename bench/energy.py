"""What kvwatt saves beside every rival, the best found with full knowledge and a proven bound.

    python bench/energy.py [--quick] [--json FILE] [--plot FILE.html] [--jobs N] [--seeds 1 2 3 4]
                           [--minutes M] [--plants ...] [--traces ...] [--slos ...] [--loads ...]
                           [--policies ...]

Simulated L20 and A100 (TP 2), the Azure 2023 traces (expected in ../shared/data/traces) thinned to shares of
capacity; plants, promises and seeds are those of kvwatt_sim.replay.scenario. Energy is that of all GPUs from
the first arrival to 60 s after the last, idle included. The scored seeds 1-4 were never used for tuning.

In the table: percent saved against the driver default, mean and half the span over the seeds, and the promise
kept least on the worst seed. `!`: below 99 %, does not count. `best-pair` switches clocks in no time at every
step, which no GPU does; `best-found` is what a search with full knowledge of the run found; `bound` is proven
and not attainable.

Every finished run is kept in the cache folder until the code that it depends on changes: a run that was
stopped goes on. --quick serves three settings, one seed and fewer policies in a few minutes; its bars carry
the same names and say less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table as Printed

from bars import show, write
from energy_bars import Table, bars
from energy_plot import write_plot
from energy_runs import BOUND, OURS, STEP, TRACES, Row, Task, run_all
from kvwatt_sim.replay.scenario import PRESETS, SCORING_SEEDS

PLANTS, TRACE_NAMES, LOADS = ("l20", "a100-tp2"), ("conv", "code"), (0.25, 0.5, 0.75, 0.9)
POLICIES = (
    "max", "best-fixed", "best-cap", "race-to-idle", "voltana", "agft", "throttllem", "throttllem-15",
    "throttllem-30", OURS, "best-found", "best-pair", BOUND,
)  # fmt: skip
QUICK_POLICIES = ("max", "best-fixed", "voltana", "throttllem", OURS, "best-found", BOUND)
QUICK = (("l20", "conv", "paper", 0.5), ("l20", "conv", "paper", 0.75), ("a100-tp2", "conv", "paper", 0.75))
MINUTES = 60.0  # all of both traces: their bursts are what a fixed clock has to be ready for
# Longer answers come at half load: at three quarters the top clock itself would not keep up.
ROBUSTNESS = {"usual": 0.75, "switch-0": 0.75, "bias": 0.75, "lengths": 0.5, "step": 0.75}
ROBUSTNESS_ON = ("l20", "conv", "paper")


def main() -> None:
    """Run what is missing, print the tables and the bars, write the files."""
    options = _options()
    if not TRACES.is_dir():
        sys.exit(f"{TRACES.resolve()}: no traces here; the comparison needs the Azure 2023 CSV files")
    rows = run_all(list(_tasks(options)), options.jobs)
    table = Table(rows)
    console = Console(width=max(Console().width, 110))
    for group in dict.fromkeys(setting[:3] for setting in table.cells):
        console.print(_printed(table, group, options))
    for line in _step_minutes(table):
        console.print(line)
    found = bars(rows)
    show(found, f"Energy, {_scope(options)}")
    write(options.json, found, scope=_scope(options), rows=[_told(t, row) for t, row in rows.items()])
    if options.plot is not None:
        write_plot(options.plot, table)


def _tasks(options: argparse.Namespace) -> Iterator[Task]:
    settings: Sequence[tuple[str, str, str, float]] = QUICK
    policies = QUICK_POLICIES if options.quick else options.policies
    if not options.quick:
        settings = list(product(options.plants, options.traces, options.slos, options.loads))
    for setting, seed, policy in product(settings, options.seeds, policies):
        yield Task(*setting, seed, options.minutes, policy)
    if ROBUSTNESS_ON in {setting[:3] for setting in settings}:
        for (variant, load), seed in product(ROBUSTNESS.items(), options.seeds):
            yield Task(*ROBUSTNESS_ON, load, seed, options.minutes, OURS, variant)
        for seed in options.seeds:  # what the step's minute allows
            yield Task(*ROBUSTNESS_ON, ROBUSTNESS["step"], seed, options.minutes, "max", "step")


def _step_minutes(table: Table) -> Iterator[str]:
    """The minute of the rate step, seed by seed, beside what the driver default keeps of it."""
    rows = table.variants.get("step", {})
    for policy in dict.fromkeys(policy for policy, _ in rows):
        kept = " ".join(f"{100.0 * row['minute']:.1f}" for (name, _), row in rows.items() if name == policy)
        yield f"kept in the minute of a rate step x{STEP:g}, %, seed by seed: {policy} {kept}"


def _printed(table: Table, group: tuple[str, str, str], options: argparse.Namespace) -> Printed:
    loads = [setting[3] for setting in table.cells if setting[:3] == group]
    printed = Printed(title=f"{' '.join(group)}: % saved (% kept), {_scope(options)}")
    printed.add_column("policy")
    for load in loads:
        requests = fmean(r["requests"] for r in table.cells[*group, load]["max"].values())
        printed.add_column(f"{load:g} ({requests:.0f} requests)", justify="right")
    for policy in table.cells[*group, loads[0]]:
        printed.add_row(policy, *(_cell(table, (*group, load), policy) for load in loads))
    return printed


def _cell(table: Table, setting: tuple[str, str, str, float], policy: str) -> str:
    saved = table.saved(setting, policy, "max")
    spread = (max(saved) - min(saved)) / 2.0
    told = f"{fmean(saved):.1f}±{spread:.1f}"
    if policy == BOUND:
        return f"<= {told}"
    mark = "" if table.counts(setting, policy) else "!"
    return f"{told} ({100.0 * table.kept(setting, policy):.1f}{mark})"


def _told(task: Task, row: Row) -> dict[str, object]:
    return {**asdict(task), **row}


def _scope(options: argparse.Namespace) -> str:
    scope = f"{options.minutes:g} min, seeds {' '.join(map(str, options.seeds))}"
    return f"quick: {scope}, {len(QUICK)} settings" if options.quick else scope


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--plants", nargs="+", default=PLANTS)
    parser.add_argument("--traces", nargs="+", default=TRACE_NAMES)
    parser.add_argument("--slos", nargs="+", default=PRESETS)
    parser.add_argument("--loads", nargs="+", type=float, default=LOADS)
    options = parser.parse_args()
    options.seeds = options.seeds or list(SCORING_SEEDS[:1] if options.quick else SCORING_SEEDS)
    options.minutes = options.minutes or MINUTES
    return options


if __name__ == "__main__":
    main()
