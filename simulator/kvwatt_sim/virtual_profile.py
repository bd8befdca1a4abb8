"""Profiling the simulated plant in virtual time: the table that `kvwatt profile` would measure on it.

The power cap is in force, so a row's clock is the one that was asked for, as on real hardware. Power is
that of all GPUs of the engine. Each row carries independent log-normal measurement noise.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from math import exp, nan
from pathlib import Path
from random import Random

from kvwatt.profiles import COLUMNS, ProfileRow, format_row
from kvwatt.state import EngineShape
from kvwatt_sim.cards import Card
from kvwatt_sim.gpu import capped_clock_mhz, power_w, step

CLOCKS = 10  # clocks in a profile when none are named, spread evenly over the supported ones
BATCHES = (1, 4, 16, 32, 64, 96, 128, 192, 256)
CONTEXTS = (256, 1024, 4096)
PREFILLS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
MIXED_BATCHES = (8, 32, 128)
MIXED_CONTEXT = 1024
MIXED_PREFILLS = (256, 1024, 1920)

Load = tuple[str, int, int, int]  # kind, decode batch, KV tokens, prefill tokens


def virtual_profile(
    card: Card,
    seed: int,
    noise: float = 0.02,
    clocks: Sequence[int] | None = None,
    shape: EngineShape | None = None,
) -> list[ProfileRow]:
    """Rows over clock x batch x context that fit `shape` (the card's by default).

    `noise`: standard deviation of the logarithm, 0 for none. Raises ValueError for noise that is
    negative or above 0.5, and for clocks the card does not support.
    """
    if not 0.0 <= noise <= 0.5:
        raise ValueError(f"noise = {noise!r}: 0 to 0.5 is accepted")
    chosen = spread(card.supported_mhz, CLOCKS) if clocks is None else tuple(clocks)
    unknown = sorted(set(chosen) - set(card.supported_mhz))
    if unknown or not chosen:
        low, high = card.supported_mhz[0], card.supported_mhz[-1]
        raise ValueError(
            f"clocks = {unknown or 'none'}: supported clocks from {low} to {high} MHz are needed"
        )
    random = Random(seed)
    loads = tuple(_loads(shape or card.engine_shape()))
    rows = []
    for clock in chosen:
        rows.append(_idle(card, clock, _factor(random, noise)))
        rows.extend(
            _busy(card, clock, load, _factor(random, noise), _factor(random, noise)) for load in loads
        )
    return rows


def write_profile(rows: Sequence[ProfileRow], path: Path) -> None:
    """Write the table as CSV with the columns of `kvwatt.profiles`. Raises OSError."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(format_row(row) for row in rows)


def spread(clocks: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the clocks, evenly spaced, the lowest and the highest among them."""
    if count >= len(clocks):
        return tuple(clocks)
    last = len(clocks) - 1
    return tuple(clocks[round(last * index / max(count - 1, 1))] for index in range(count))


def _loads(shape: EngineShape) -> Iterator[Load]:
    room = shape.kv_capacity_tokens
    for batch in (batch for batch in BATCHES if batch <= shape.max_num_seqs):
        for context in (context for context in CONTEXTS if batch * context <= room):
            yield "decode", batch, batch * context, 0
    for tokens in PREFILLS:
        if tokens <= min(shape.max_num_batched_tokens, room):
            yield "prefill", 0, 0, tokens
    for batch in (batch for batch in MIXED_BATCHES if batch <= shape.max_num_seqs):
        for tokens in MIXED_PREFILLS:
            kv_tokens = batch * MIXED_CONTEXT
            if batch + tokens <= shape.max_num_batched_tokens and kv_tokens + tokens <= room:
                yield "mixed", batch, kv_tokens, tokens


def _busy(card: Card, clock_mhz: int, load: Load, time_factor: float, power_factor: float) -> ProfileRow:
    kind, batch, kv_tokens, prefill = load
    asked = step(card, clock_mhz, batch, kv_tokens, prefill)
    actual_mhz = capped_clock_mhz(card, clock_mhz, asked.compute, asked.memory)
    done = step(card, actual_mhz, batch, kv_tokens, prefill)
    watts = card.tp * power_w(card, actual_mhz, done.compute, done.memory)
    return ProfileRow(
        clock_mhz, batch, kv_tokens, prefill, done.time_s * time_factor, watts * power_factor, card.tp, kind
    )


def measured_row(
    card: Card, clock_mhz: int, load: Load, time_factor: float, power_factor: float
) -> ProfileRow:
    """One row of any kind, times the noise given."""
    if load[0] == "idle":
        return _idle(card, clock_mhz, power_factor)
    return _busy(card, clock_mhz, load, time_factor, power_factor)


def _idle(card: Card, clock_mhz: int, factor: float) -> ProfileRow:
    """A locked clock and a loaded model that does nothing."""
    watts = card.tp * power_w(card, clock_mhz, 0.0, 0.0)
    return ProfileRow(clock_mhz, 0, 0, 0, nan, watts * factor, card.tp, "idle")


def _factor(random: Random, noise: float) -> float:
    return exp(random.gauss(0.0, noise))
