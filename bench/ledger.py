"""Does the ledger prove what it says? Simulated days with a known saving, kills, sizes and cost.

    python bench/ledger.py [--quick] [--part days|kills|cost] [--json FILE]

days   200 days (4 seeds of 50; --quick: 50 days) of random load: how often the 95 % interval from the holdout
       windows contains the true saving of the day, with a model that is right, one that is wrong in level and
       shape, and none; what the windows cost; other shares beside the default; other ways to tell a saving
kills  a process that keeps a ledger, killed with SIGKILL at random moments, 40 times (--quick: 8)
cost   bytes and processor time of a ledger of 60 days (--quick: 5)
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from kvwatt.holdout import HoldoutParams
from ledger_judged import BIASES, Days, Judged, judge, rivals, simulate

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tests" / "ledger"))

from ledger_kills import kill_once  # noqa: E402
from ledger_rows import DAY_MS, START_MS, held, row  # noqa: E402

from kvwattd.ledger.compaction import Keep, compact  # noqa: E402
from kvwattd.ledger.entry import Level  # noqa: E402
from kvwattd.ledger.reading import read  # noqa: E402
from kvwattd.ledger.store import Store  # noqa: E402

SEEDS = (1, 2, 3, 4)
DAYS_A_SEED = 50
SHARES = (0.005, 0.01, 0.02)
KILL_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Share:
    """One share of time held, over all days."""

    days: list[Days]

    def judged(self, bias: str, span: int = 1) -> list[Judged]:
        return [one for some in self.days for one in judge(some, bias, span)]

    @property
    def cost(self) -> float:
        """Of the saving without any windows, what they cost: the sum over all days."""
        saved = sum(float(d.default_j.sum() - d.used_j.sum()) for d in self.days)
        without = sum(float(d.default_j.sum() - d.unheld_j.sum()) for d in self.days)
        return 1.0 - saved / without


def covered(found: list[Judged]) -> float:
    return statistics.fmean(one.contains for one in found)


def days(quick: bool, console: Console) -> list[Bar]:
    seeds = SEEDS[:1] if quick else SEEDS
    default = HoldoutParams()
    shares = {}
    for share in (default.share, *(() if quick else SHARES)):
        params = replace(default, share=share)
        shares[share] = Share([simulate(seed, DAYS_A_SEED, params) for seed in seeds])
        console.print(f"share {share:.1%}: lived", style="dim")
    console.print(_by_share(shares))
    chosen = shares[default.share]
    console.print(_rivals(chosen))
    bars = []
    for bias in BIASES:
        found = chosen.judged(bias)
        bars.append(
            Bar(f"95 % interval contains the truth, {bias}: at least", covered(found), 0.92, "higher")
        )
        bars.append(Bar(f"95 % interval contains the truth, {bias}: at most", covered(found), 0.98, "lower"))
    bars.append(Bar("cost of the holdout, share of the saving", chosen.cost, 0.01, "lower"))
    bars.append(Bar("simulated days", sum(len(d.used_j) for d in chosen.days), 200, "higher"))
    without = sum(len(d.used_j) for d in chosen.days) - len(chosen.judged("model right"))
    bars.append(Bar("days without an interval", without, 0, "lower"))
    return bars


def _by_share(shares: dict[float, Share]) -> Table:
    table = Table(title="Share of time held at default: what it proves and what it costs")
    names = (
        "share",
        "days",
        "model",
        "windows",
        "contains",
        "half-width, % of baseline",
        "of saving",
        "cost",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "model" else "right")
    for share, found in sorted(shares.items()):
        for bias, span in ((bias, span) for span in (1, 7) for bias in BIASES):
            seen = found.judged(bias, span)
            half = statistics.median(one.half_j / one.baseline_j for one in seen)
            of_saving = statistics.median(one.half_j / one.true_j for one in seen)
            windows = statistics.fmean(one.windows for one in seen)
            told = (f"{covered(seen):.1%}", f"{half:.2%}", f"{of_saving:.1%}", f"{found.cost:.2%}")
            table.add_row(f"{share:.1%}", str(span), bias, f"{windows:.1f}", *told)
    return table


def _rivals(chosen: Share) -> Table:
    table = Table(title="Other ways to tell the saving of a day: error in % of the baseline's energy")
    for name in ("way", "root mean square", "mean", "interval contains"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for bias in BIASES:
        seen = chosen.judged(bias)
        errors = np.array([(one.saved_j - one.true_j) / one.baseline_j for one in seen])
        told = (f"{np.sqrt(np.mean(errors**2)):.2%}", f"{errors.mean():+.2%}", f"{covered(seen):.1%}")
        table.add_row(f"holdout windows, {bias}", *told)
    for name in rivals(chosen.days[0]):
        errors = np.concatenate([rivals(d)[name] for d in chosen.days])
        table.add_row(name, f"{np.sqrt(np.mean(errors**2)):.2%}", f"{errors.mean():+.2%}", "no interval")
    return table


def kills(quick: bool, console: Console) -> list[Bar]:
    rng, number = random.Random(5), 8 if quick else 40
    with tempfile.TemporaryDirectory(prefix="kvwatt-ledger-") as folder:
        path = Path(folder) / "ledger.db"
        found = [kill_once(path, rng, KILL_PERIOD_S, 2 * KILL_PERIOD_S) for _ in range(number)]
    wrong = [one for one in found if one.wrong is not None or one.kept > one.found]
    for one in wrong:
        console.print(one)
    lost = [one.time_lost_s / KILL_PERIOD_S for one in found]
    caught = sum(one.lost for one in found)
    console.print(
        f"{number} kills, {found[-1].found} intervals kept; {caught} kills fell between the close of an "
        f"interval and its commit; time lost: median {statistics.median(lost):.2f} intervals"
    )
    return [
        Bar("kill -9: kills", number, 40, "higher"),
        Bar("kill -9: files damaged, or rows missing or twice", len(wrong), 0, "lower"),
        Bar("kill -9: intervals lost that were closed, at most", max(one.lost for one in found), 1, "lower"),
        Bar("kill -9: most time lost, in intervals", max(lost), 1.05, "lower"),
    ]


def cost(quick: bool, console: Console) -> list[Bar]:
    number = 5 if quick else 60
    keep = Keep(14 * DAY_MS, 180 * DAY_MS, 1825 * DAY_MS, 512_000_000)
    commits = []
    with tempfile.TemporaryDirectory(prefix="kvwatt-ledger-") as folder:
        store = Store(Path(folder) / "ledger.db")
        store.open()
        started_s = time.process_time()
        for day in range(number):
            rows = [row(day * 1440 + i) for i in range(1440)] + [held(day * 1440 + i, i) for i in range(8)]
            for one in rows[:20]:  # one by one as they come, the rest at once: only the disk differs
                began_s = time.perf_counter()
                store.append([one])
                commits.append(time.perf_counter() - began_s)
            store.append(rows[20:])
            compact(store, keep, START_MS + (day + 1) * DAY_MS)
        took_s = time.process_time() - started_s
        used = store.used_bytes()
        began_s = time.process_time()
        found = read(Path(folder) / "ledger.db", 0, 2**62)
        reading_s = time.process_time() - began_s
        store.close()
    fine = sum(one.level is Level.INTERVAL for one in found)
    console.print(
        f"{number} days of one instance: {used / 1e6:.1f} MB for {len(found):,} rows ({fine:,} fine); "
        f"{1e6 * took_s / number / 1448:.0f} us of processor time an interval, merging included; "
        f"commit {1e3 * statistics.median(commits):.1f} ms (median, wall), {1e3 * max(commits):.0f} at most; "
        f"read in {reading_s:.2f} s"
    )
    total_mj = sum(one.energy_mj for one in found)
    truth_mj = number * (1440 * row().energy_mj + 8 * held(0, 0).energy_mj)
    return [
        Bar("size after down-sampling, MB", used / 1e6, 512, "lower"),
        Bar("millijoules gained or lost by merging", abs(total_mj - truth_mj), 0, "lower"),
    ]


PARTS = {"days": days, "kills": kills, "cost": cost}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50 days, 8 kills, a file of 5 days")
    parser.add_argument("--part", choices=PARTS, help="only this")
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    arguments = parser.parse_args()
    console, bars = Console(width=120), []
    for name, part in PARTS.items():
        if arguments.part in (None, name):
            bars += part(arguments.quick, console)
    show(bars, "Ledger")
    write(arguments.json, bars)
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
