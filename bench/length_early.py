"""The first requests after a start: how well is it foreseen who still runs?

    python bench/length_early.py [--quick] [--json FILE]

From many moments of the second halves of the Azure traces on, an engine that was empty serves what arrives,
a token every 40 ms for each request, at the trace's rate or a tenth of it. Of everyone inside it is predicted
whether it still runs after 25, 100 and 400 more tokens, when so and so many requests have finished; squared
errors (Brier) are averaged. Compared are, on the same requests,

    histogram        lengths of all requests together, with the daemon's pessimistic prior
    finished         lengths by class from the finished requests alone
    kvwatt           the same leaning on the histogram, and who runs counts as cut off where it is

Requests are looked at one by one from the third finished one on: the last column is what that costs or gains
up to the hundredth, beside the histogram. The form was found on the first halves.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bars import write
from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt.lengths import LengthModel
from kvwatt_sim.traces import TraceRequest
from kvwattd.observation import PRIOR_OUTPUTS
from kvwattd.tap_stream import exact_histogram
from length_scores import TOKEN_S, TRACES, Floats, azure

AHEAD = np.array([25.0, 100.0, 400.0])
SINCE = (3, 10, 30, 100, 300)  # finished requests
STARTS, QUICK_STARTS = 32, 8
MOST = 600  # requests that arrive after a start
LOOKS = {1.0: 0.5, 0.1: 5.0}  # share of the rate, and seconds between looks
MODELS = ("histogram", "finished", "kvwatt")
Errors = dict[tuple[str, int], list[float]]


@dataclass(frozen=True, slots=True)
class Engine:
    """Requests of one start as columns."""

    arrival_s: Floats
    prompt: Floats
    total: Floats

    @classmethod
    def of(cls, requests: Sequence[TraceRequest]) -> Engine:
        arrival_s = np.array([r.arrival_s for r in requests])
        columns = np.array([[r.prompt_tokens, r.output_tokens] for r in requests], dtype=np.float64).T
        return cls(arrival_s - arrival_s[0], *columns)


def follow(engine: Engine, every_s: float, errors: Errors) -> None:
    """Serve, learn and predict from the start until the last bin of SINCE is full."""
    pooled = LengthModel()
    pooled.update(PRIOR_OUTPUTS)
    finished, ours = ClassLengths(), ClassLengths(pooled=pooled)
    end_s = engine.arrival_s + engine.total * TOKEN_S
    order, done, now_s = np.argsort(end_s, kind="stable"), 0, 0.0
    while done < SINCE[-1] and now_s < engine.arrival_s[-1]:
        now_s += every_s
        told = int(np.searchsorted(end_s[order], now_s))
        new = [FinishedRequest(int(engine.prompt[i]), int(engine.total[i])) for i in order[done:told]]
        done = told
        live = (engine.arrival_s <= now_s) & (end_s > now_s)
        produced = np.floor((now_s - engine.arrival_s[live]) / TOKEN_S)
        inside = Requests.known(engine.prompt[live], produced)
        if new:
            pooled.update(exact_histogram([r.output_tokens for r in new]))
        finished.update(new)
        ours.update(new, inside)
        stage = int(np.searchsorted(SINCE, done, side="right")) - 1
        if 0 <= stage < len(SINCE) - 1 and live.any():
            ahead = np.broadcast_to(AHEAD, (len(produced), len(AHEAD)))
            later = pooled.survival(produced[:, None] + AHEAD)
            said = (
                later / np.maximum(pooled.survival(produced), 1e-12)[:, None],
                finished.alive(inside, ahead),
                ours.alive(inside, ahead),
            )
            came = (engine.total[live] - produced)[:, None] > AHEAD
            for name, chance in zip(MODELS, said, strict=True):
                errors[name, stage] += ((chance - came) ** 2).mean(axis=1).tolist()


def scored(kind: str, share: float, starts: int) -> Errors:
    """All starts of one trace at a share of its rate."""
    requests = azure(kind)
    rest = requests[len(requests) // 2 :]
    lot = np.random.default_rng(1)
    kept = [r for r in rest if lot.random() < share]
    errors: Errors = defaultdict(list)
    for first in np.linspace(0, 0.8 * len(kept), starts).astype(int):
        follow(Engine.of(kept[first : first + MOST]), LOOKS[share], errors)
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STARTS} starts instead of {STARTS}")
    arguments = parser.parse_args()
    if not TRACES.is_dir():
        print(f"traces not found at {TRACES}", file=sys.stderr)
        return 77
    shown = Table(title="Mean squared error of 'still runs after 25, 100, 400 tokens'")
    stages = [f"{low} to {high} finished" for low, high in pairwise(SINCE)]
    for column in ("", *stages, "up to 100, of the histogram's"):
        shown.add_column(column, justify="left" if not column else "right")
    found = {}
    for kind in ("conv", "code"):
        for share in LOOKS:
            errors = scored(kind, share, QUICK_STARTS if arguments.quick else STARTS)
            early = {name: np.mean(np.concatenate([errors[name, i] for i in range(3)])) for name in MODELS}
            for name in MODELS:
                means = [float(np.mean(errors[name, stage])) for stage in range(len(stages))]
                ratio = float(early[name] / early["histogram"])
                found[f"{kind} {share:g} {name}"] = [*means, ratio]
                cells = (*(f"{mean:.4f}" for mean in means), f"{ratio:.3f}")
                shown.add_row(f"{kind}, {share:g} of the rate: {name}", *cells)
    Console(width=150).print(shown)
    write(arguments.json, [], mean_squared_error=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
