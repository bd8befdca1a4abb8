"""Which options the length model has, chosen inside the first halves of the Azure traces.

    python bench/length_choice.py [--json FILE]

The second halves, on which bench/projection.py scores the model, are not read. Each trace is learned to 20 %
of its requests and then predicted and learned on to 50 % (`length_scores.prequential`). Among
the options whose worst decile is not further off than a right model's would be in 19 of 20 cases, on
both traces, the likelihood per request decides, summed over the traces; among those within `EQUAL` of the
best, the distance of the worst decile in units of that chance, mean of the traces. Prints the table, best
first. The rule took its form while this was developed, and so did the model: see docs/decisions.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from kvwatt.length_classes import ClassLengths
from kvwatt.length_recent import RecentOptions
from kvwatt.length_tree import TreeOptions
from length_scores import TRACES, LengthScore, azure, prequential

BEGIN, END = 0.2, 0.5
EQUAL = 0.005  # about the sampling error of a difference
MEMORIES = (10_000.0,)
SHRINKS = (5.0, 10.0)  # from 20 on, classes that are well known lean on the pooled curve visibly
RECENT = (500.0, 2_000.0)
PRIORS = (5.0, 20.0, 1e9)  # the last one: no correction at all


@dataclass(frozen=True, slots=True)
class Options:
    memory_requests: float
    shrink_requests: float
    recent_requests: float
    prior_requests: float

    def model(self) -> ClassLengths:
        recent = RecentOptions(self.recent_requests, self.prior_requests)
        classes = TreeOptions(self.shrink_requests)
        return ClassLengths(self.memory_requests, classes, recent=recent)


def grid() -> list[Options]:
    """Every combination; without a correction its memory says nothing."""
    all_of = itertools.product(MEMORIES, SHRINKS, RECENT, PRIORS)
    return [Options(*each) for each in all_of if each[3] < 1e6 or each[2] == RECENT[0]]


@dataclass(frozen=True, slots=True)
class Tried:
    options: Options
    scores: dict[str, LengthScore]

    @property
    def distances(self) -> list[float]:
        """Worst decile of each trace in units of what a right model exceeds in one of 20 cases."""
        return [score.worst / score.chance_95 for score in self.scores.values()]

    @property
    def log_likelihood(self) -> float:
        return sum(score.log_likelihood for score in self.scores.values())


def tried(options: Options) -> Tried:
    """Scores on both first halves."""
    found = {}
    for kind in ("conv", "code"):
        requests = azure(kind)
        size = len(requests)
        found[kind] = prequential(requests[: int(END * size)], int(BEGIN * size), options.model())
    return Tried(options, found)


def ranked(results: list[Tried]) -> list[Tried]:
    """Best first by the rule of the module text."""
    best = max((t.log_likelihood for t in results if max(t.distances) <= 1.0), default=0.0)

    def key(t: Tried) -> tuple[float, bool, float]:
        equal = t.log_likelihood >= best - EQUAL
        beyond = max(*t.distances, 1.0)
        return beyond, not equal, sum(t.distances) / 2 if equal else -t.log_likelihood

    return sorted(results, key=key)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    if not TRACES.is_dir():
        print(f"traces not found at {TRACES}", file=sys.stderr)
        return 77
    results = ranked([tried(options) for options in track(grid(), transient=True)])
    shown = Table(title="Options of the length model, first halves only, best first")
    names = ("memory", "shrink", "recent", "prior")
    for name in (*names, "conv worst", "code worst", "of chance", "log lik."):
        shown.add_column(name, justify="right")
    for each in results:
        o, s = each.options, each.scores
        values = (o.memory_requests, o.shrink_requests, o.recent_requests, o.prior_requests)
        measures = (s["conv"].worst, s["code"].worst, sum(each.distances) / 2, each.log_likelihood)
        shown.add_row(*(f"{value:g}" for value in values), *(f"{value:.4f}" for value in measures))
    Console().print(shown)
    if arguments.json:
        rows = [{"options": repr(t.options), "log_likelihood": t.log_likelihood} for t in results]
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
