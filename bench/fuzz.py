"""Mutated inputs to everything that reads what others wrote: only the documented refusals may come out.

    python bench/fuzz.py [--inputs N] [--seed N] [--only NAME] [--quick] [--json FILE]

Each parser runs in a process of its own, so that a death is counted and the inputs after it are still tried.
An input that takes longer than a second, any undocumented exception and any death are findings; each is
shown with its number, by which `tests/fuzz/engine.py` makes it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bars import Bar, show, write

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "fuzz"))

from engine import Outcome, fuzz
from target import Target
from targets import targets

INPUTS, QUICK_INPUTS = 1_000_000, 100_000
BATCH = 2000
STUCK_S = 60.0  # a batch that takes longer hangs in native code, where no alarm is heard
MEMORY_BYTES = 4 << 30  # an input that asks for more is a finding: MemoryError
FORK = multiprocessing.get_context("fork")


def run(target: Target, seed: int, count: int) -> Outcome:
    """All inputs of one target, batch by batch; after a death the next batch goes on."""
    total = Outcome(target.name)
    started_s = time.monotonic()
    first = 0
    while first < count:
        first = _in_child(target, seed, first, count, total)
    total.took_s = time.monotonic() - started_s
    return total


def _in_child(target: Target, seed: int, first: int, count: int, total: Outcome) -> int:
    """The number to go on with: `count` unless the child died."""
    ours, theirs = FORK.Pipe(duplex=False)
    at = FORK.Value("q", first)
    child = FORK.Process(target=_work, args=(target, seed, first, count, at, theirs))
    child.start()
    theirs.close()
    done = first
    try:
        while ours.poll(STUCK_S):
            batch = ours.recv()
            _add(total, batch)
            done += batch.inputs
    except EOFError:
        pass
    if done >= count:
        child.join()
        return count
    hung = child.is_alive() and child.exitcode is None and not child.join(1.0) and child.is_alive()
    child.kill()
    child.join()
    total.hangs += hung
    total.crashes += not hung
    total.inputs += at.value - done + 1
    what = "hangs in native code" if hung else f"dies with {child.exitcode}"
    total.findings.append(f"{target.name} {at.value}: {what}")
    return int(at.value) + 1


def _work(target: Target, seed: int, first: int, count: int, at: Synchronized[int], out: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for low in range(first, count, BATCH):
        out.send(fuzz(target, seed, range(low, min(low + BATCH, count)), at))


def _add(total: Outcome, batch: Outcome) -> None:
    for name in ("inputs", "accepted", "refused", "hangs", "unexpected", "crashes"):
        setattr(total, name, getattr(total, name) + getattr(batch, name))
    total.slowest_s = max(total.slowest_s, batch.slowest_s)
    total.findings += batch.findings


def table(outcomes: list[Outcome]) -> Table:
    shown = Table(title="Mutated inputs")
    for column in ("parser", "inputs", "accepted", "refused", "findings", "slowest, ms", "inputs/s"):
        shown.add_column(column, justify="left" if column == "parser" else "right")
    for o in outcomes:
        rate = f"{o.inputs / o.took_s:,.0f}"
        counts = (f"{o.inputs:,}", f"{o.accepted:,}", f"{o.refused:,}", str(o.bad))
        shown.add_row(o.name, *counts, f"{1e3 * o.slowest_s:.0f}", rate)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, help=f"in all ({INPUTS:,}; --quick {QUICK_INPUTS:,})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="parsers whose name has this in it; they get all inputs")
    parser.add_argument("--quick", action="store_true", help="fewer inputs: a minute")
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    arguments = parser.parse_args()
    inputs = arguments.inputs or (QUICK_INPUTS if arguments.quick else INPUTS)
    with tempfile.TemporaryDirectory(prefix="kvwatt-fuzz-", dir="/dev/shm") as folder:
        chosen = [t for t in targets(Path(folder)) if (arguments.only or "") in t.name]
        shares = sum(target.share for target in chosen)
        outcomes = []
        for target in chosen:
            outcomes.append(run(target, arguments.seed, -int(-inputs * target.share // shares)))
            Console(stderr=True).print(f"{target.name}: {outcomes[-1].inputs:,}", style="dim")
    Console().print(table(outcomes))
    for finding in [f for o in outcomes for f in o.findings]:
        Console().print(finding[:600], markup=False)
    bars = [
        Bar("inputs over all parsers", sum(o.inputs for o in outcomes), INPUTS, "higher"),
        Bar("crashes, hangs and unhandled exceptions", sum(o.bad for o in outcomes), 0, "lower"),
        Bar(
            "least share accepted by a parser, %",
            100 * min(o.accepted / o.inputs for o in outcomes),
            1,
            "higher",
        ),
    ]
    show(bars, "Fuzzing")
    parsers = {o.name: {"inputs": o.inputs, "accepted": o.accepted, "bad": o.bad} for o in outcomes}
    write(arguments.json, bars, parsers=parsers, seed=arguments.seed)
    return 0 if all(o.bad == 0 for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
