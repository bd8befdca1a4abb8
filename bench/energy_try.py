"""kvwatt beside the best fixed clock and the best found on seeds for tuning: a minute a case.

    python bench/energy_try.py [PLANT TRACE SLO LOAD] [--seeds 101 102] [--minutes 60] [--policies ...]

Nothing printed here is a result: seeds below 100 are for scoring and refused.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from energy_runs import Row, Task, run_all
from kvwatt_sim.replay.scenario import TUNING_FROM

POLICIES = ("max", "best-fixed", "kvwatt", "best-found")


def main() -> None:
    """Run it and print one row per policy and seed."""
    options = _options()
    if min(options.seeds) < TUNING_FROM:
        sys.exit(f"--seeds {min(options.seeds)}: seeds below {TUNING_FROM} are scored, never tuned on")
    case = (options.plant, options.trace, options.slo, options.load)
    tasks = [Task(*case, s, options.minutes, p) for s in options.seeds for p in options.policies]
    rows = run_all(tasks, options.jobs)
    table = Table(title=f"{' '.join(map(str, case))}, {options.minutes:g} min")
    for column in ("seed", "policy", "requests", "saved %", "kept %", "changes"):
        table.add_column(column)
    for task, row in rows.items():
        top = rows[Task(*case, task.seed, task.minutes, "max")]
        table.add_row(str(task.seed), task.policy, *_cells(row, top))
    Console().print(table)


def _cells(row: Row, top: Row) -> tuple[str, ...]:
    kept = " ".join(f"{name} {100 * share:.2f}" for name, share in row["kept"].items())
    saved = 100.0 * (1.0 - row["energy_j"] / top["energy_j"])
    mark = "" if min(row["kept"].values()) >= 0.99 else " BROKEN"
    return str(row["requests"]), f"{saved:.2f}", kept + mark, str(row["clock_changes"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plant", nargs="?", default="l20")
    parser.add_argument("trace", nargs="?", default="conv")
    parser.add_argument("slo", nargs="?", default="paper")
    parser.add_argument("load", nargs="?", type=float, default=0.75)
    parser.add_argument("--seeds", nargs="+", type=int, default=[101])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--jobs", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
