"""Where batch and KV cache will be in five seconds, against what an engine then does.

    python bench/projection.py [--quick] [--json FILE]

The Azure conversation trace, thinned to 50 % and 75 % of the simulated L20's capacity (3.1 requests/s),
replayed in virtual time on the card's own laws at its top clock. At a decision the projection is given
the requests present, their progress and the compiled model of `kvwatt train`, profiled with 2 % noise
and corrected by the steps so far; never the card's law. It is compared every 0.1 s over the next 5 s with

    present     the same engine, forked, without later arrivals: waiting prompts are admitted and computed
    everything  the engine as it went on, later arrivals included, of which only the rate is known

Errors are means of |projected - actual| / actual over decisions and times at which something ran. Per
step, without the clock, the known-length projection is compared too: there the scheduler alone counts.
Lengths are learned from the requests that had finished before the decision. The upper bounds are asked
to hold in 90 % of cases. Hints are the true length times log-normal noise with a 95th percentile of 30 %.

Options of the length model come from the first halves of both traces (bench/length_choice.py), the choice
among its memories from nothing but the requests that have finished; the replay, which learns as it goes,
covers that half too. How the lengths are scored, and what chance would do: see length_scores.py. That step
times need correcting by octave of batch and chunk was seen in its first 20 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bars import Bar, show, write
from kvwatt import artifact
from kvwatt.compiled import compile_model
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.traces import TraceRequest
from length_scores import TRACES, LengthScore, azure, exchanged, frozen, moved, online
from length_tables import LENGTHS_BAR, chance_of, show_chance, show_intervals, show_lengths
from projection_decisions import Replay
from projection_replay import CARD, CLOCK_MHZ, SHAPE

CAPACITY_PER_S, LOADS = 3.1, (0.5, 0.75)
DRAWS = 40  # halves drawn at random


def show_errors(console: Console, load_ratio: float, replay: Replay) -> None:
    title = f"Load {load_ratio:.0%} of capacity, {replay.decisions} decisions"
    shown = Table(title=title)
    for column in ("", "batch error %", "KV error %", "batch <= bound", "KV <= bound"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, errors in replay.errors.items():
        held = errors.coverage
        bounds = ("", "") if held is None else (f"{held[0]:.3f}", f"{held[1]:.3f}")
        shown.add_row(name, *(f"{value:.3f}" for value in errors.percent), *bounds)
    console.print(shown)


def bars_of(replays: dict[float, Replay], scores: dict[str, LengthScore]) -> list[Bar]:
    bars = []
    for ratio, replay in replays.items():
        known, unknown = replay.errors["lengths known"].percent, replay.errors["lengths unknown"].percent
        rivals = [replay.errors[name].percent for name in replay.errors if name.startswith("mean length")]
        at = f"load {ratio:.2f}:"
        bars.append(Bar(f"{at} known lengths, batch error %", known[0], 0.19, "lower"))
        bars.append(Bar(f"{at} known lengths, KV error %", known[1], 2.26, "lower"))
        for part, kind in enumerate(("batch", "KV")):
            best = min(rival[part] for rival in rivals)
            bars.append(
                Bar(f"{at} unknown / better mean-length error, {kind}", unknown[part] / best, 0.5, "lower")
            )
    lengths = [
        Bar(f"lengths, {name}: worst decile off", score.worst, LENGTHS_BAR, "lower")
        for name, score in scores.items()
    ]
    return bars + lengths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help="one load, 20 minutes of the trace")
    arguments = parser.parse_args()
    if not TRACES.is_dir():
        print(f"traces not found at {TRACES}", file=sys.stderr)
        return 77
    console = Console(width=150)
    model = artifact.load(cached_model(CARD))
    compiled = compile_model(model, (CARD.supported_mhz[-2], CLOCK_MHZ), SHAPE)
    replays: dict[float, Replay] = {}
    for ratio in LOADS[:1] if arguments.quick else LOADS:
        replay = Replay(ratio * CAPACITY_PER_S, compiled, 1200.0 if arguments.quick else 3400.0)
        replay.run()
        replays[ratio] = replay
        show_errors(console, ratio, replay)
    kinds: dict[str, Callable[[Sequence[TraceRequest]], LengthScore]] = {
        "frozen": frozen,
        "online": online,
    }
    pairs = [(kind, how) for kind in ("conv", "code") for how in kinds]
    scores = {f"{kind} {how}": kinds[how](azure(kind)) for kind, how in track(pairs, transient=True)}
    draws = DRAWS // 4 if arguments.quick else DRAWS
    drawn = {kind: exchanged(azure(kind), draws) for kind in track(("conv", "code"), transient=True)}
    what_moved = {kind: moved(azure(kind)) for kind in ("conv", "code")}
    show_lengths(console, scores)
    show_intervals(console, scores, what_moved)
    show_chance(console, scores, drawn)
    bars = bars_of(replays, scores)
    show(bars, "Bars")
    tables = {str(r): {n: e.percent for n, e in b.errors.items()} for r, b in replays.items()}
    ratios = {name: score.ratios for name, score in scores.items()}
    write(
        arguments.json,
        bars,
        errors_percent=tables,
        ratios=ratios,
        chance=chance_of(scores, drawn, what_moved),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
