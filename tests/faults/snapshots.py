"""Engine snapshots made by hand: plausible alone, of any kind one after the other."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate
from typing import Any

from blank_page import BLANK

from kvwatt.state import EngineSnapshot, Histogram

BOUNDS = ((1.0, 10.0, 100.0, 1000.0, float("inf")), (5.0, 50.0, 500.0, float("inf")))
EMPTY = Histogram(BOUNDS[0], (0.0,) * 5, 0.0, 0.0)
_COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "requests_finished_total")
_HISTOGRAMS = ("iterations", "prompt_lengths", "generation_lengths", "ttft_s", "tbt_s", "itl_s", "e2e_s")
_NOTHING_COUNTED: dict[str, Any] = dict.fromkeys(_HISTOGRAMS, EMPTY)


def page(observed_s: float, running: int = 1, steps: float = 0.0, **changes: object) -> EngineSnapshot:
    """A page of an engine that has counted `steps` steps of one token."""
    iterations = Histogram(BOUNDS[0], (steps,) * 5, steps, steps)
    made = replace(BLANK, model_name="sim", kv_usage=0.1, num_blocks=1000, **_NOTHING_COUNTED)
    made = replace(made, observed_s=observed_s, running=running, iterations=iterations)
    return replace(made, **changes)  # type: ignore[arg-type]


def successor(rng: random.Random, old: EngineSnapshot) -> EngineSnapshot:
    """The same engine a little later, or another one whose counters may look like a continuation."""
    restarted = rng.random() < 0.2
    bounds = rng.choice(BOUNDS) if restarted else None
    changes: dict[str, object] = {
        name: (0.0 if restarted else getattr(old, name)) + rng.randint(0, 2000) for name in _COUNTERS
    }
    changes |= {name: _histogram(rng, getattr(old, name), bounds) for name in _HISTOGRAMS}
    return replace(
        old,
        observed_s=old.observed_s + rng.choice((0.5, 0.5, 2.0)),
        running=rng.choice((0, 1, 40)),
        waiting=rng.choice((0, 0, 3)),
        kv_usage=rng.random(),
        **changes,  # type: ignore[arg-type]
    )


def _histogram(rng: random.Random, old: Histogram, bounds: tuple[float, ...] | None) -> Histogram:
    """`old` with more in it, or with `bounds` a new one that may hold more or less than `old`."""
    before = [0.0] * len(bounds or old.bounds)
    if bounds is None:
        before = [high - low for low, high in zip((0.0, *old.cumulative), old.cumulative, strict=False)]
    counts = [count + float(rng.choice((0, 0, 1, rng.randint(0, 2000)))) for count in before]
    total = sum(counts)
    grown = (0.0 if bounds else old.sum) + rng.random() * total
    return Histogram(bounds or old.bounds, tuple(accumulate(counts)), grown if total else 0.0, total)
