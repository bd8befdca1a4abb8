"""The requests of a day: how many per window from one trace, who they are and how they come from another.

Rates: ServeGen's real request rates of 24 hours, one per 600 s (Apache-2.0). Requests: Azure's 2023
conversation trace (Splitwise, ISCA 2024; CC-BY). Each window takes a stretch of consecutive Azure requests
from a place drawn by the seed, as many as its rate asks for, with their own lengths, and maps the stretch
linearly onto the window. So the day has ServeGen's rate in every window and Azure's bursts and lengths, in
Azure's order, inside it. A shorter day has the same windows, each shorter: its rates change faster, its
requests are the same.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from math import inf
from pathlib import Path

from kvwatt_sim.traces import TraceError, TraceRequest

COLUMNS = ("window_start_s", "requests_per_s")
FULL_DAY_S = 86_400.0


def load_rates(path: Path) -> tuple[float, ...]:
    """Requests per second of every window, in order. Raises TraceError."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise TraceError(f"{path}: line 1: the columns {', '.join(COLUMNS)} are expected")
    rates = tuple(_rate(path, number, row) for number, row in enumerate(rows[1:], 2))
    if not any(rates):
        raise TraceError(f"{path}: no window with a rate above 0")
    return rates


def _rate(path: Path, number: int, row: Sequence[str]) -> float:
    try:
        rate = float(row[1])
    except (IndexError, ValueError):
        rate = -1.0
    if not 0.0 <= rate < inf:
        raise TraceError(f"{path}: line {number}: {row!r}: a rate of at least 0 is expected")
    return rate


def scaled(rates: Sequence[float], peak_per_s: float) -> tuple[float, ...]:
    """The same shape with `peak_per_s` in its highest window."""
    if not 0.0 < peak_per_s < inf:
        raise ValueError(f"peak_per_s must be positive and finite, got {peak_per_s}")
    most = max(rates)
    return tuple(rate * peak_per_s / most for rate in rates)


def day_requests(
    rates_per_s: Sequence[float], source: Sequence[TraceRequest], day_s: float, seed: int
) -> tuple[TraceRequest, ...]:
    """Requests of a day of `day_s` seconds, `rates_per_s` in its windows; see the module's text.

    Raises ValueError where a window needs more requests than `source` has."""
    rng = random.Random(seed)
    window_s = day_s / len(rates_per_s)
    made: list[TraceRequest] = []
    for index, rate in enumerate(rates_per_s):
        # Rounded by chance, so that the mean over windows is exact.
        count = int(rate * window_s + rng.random())
        made += _window(source, count, index * window_s, window_s, rng)
    return tuple(made)


def _window(
    source: Sequence[TraceRequest], count: int, start_s: float, window_s: float, rng: random.Random
) -> list[TraceRequest]:
    if count >= len(source):
        raise ValueError(f"a window needs {count} requests; the trace has {len(source)}")
    first = rng.randrange(len(source) - count)
    begin_s, end_s = source[first].arrival_s, source[first + count].arrival_s
    pace = window_s / max(end_s - begin_s, 1e-9)
    return [
        TraceRequest(start_s + (r.arrival_s - begin_s) * pace, r.prompt_tokens, r.output_tokens)
        for r in source[first : first + count]
    ]
