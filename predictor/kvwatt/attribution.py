"""Measured joules to the requests that caused them: each gets its share of each step's work.

    expected   of an interval, by the step model's terms, in joules:
                 weights   steps x step_j                 shared by who took part, by steps taken part in
                 prefill   prompt tokens x prefill_token_j
                 decode    output tokens x decode_token_j
                 kv        KV tokens read x kv_token_j    a decode step reads its request's whole context
                 idle      seconds with nobody inside x idle_w
    measured   the counter's joules, divided in these proportions

What the model gets wrong is thereby wrong for all alike, and the parts add up to the counter exactly:
energy is kept as whole microjoules and divided by the largest remainder, so that nothing is lost to
rounding, however long it goes on. Idle energy is nobody's and shown apart; the power a GPU draws merely
for being on is in the step's price while somebody keeps it busy.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from kvwatt.energy_prior import StepEnergy

MICRO = 1_000_000


class Part(StrEnum):
    """What energy went into."""

    IDLE = "idle"
    WEIGHTS = "weights"
    PREFILL = "prefill"
    DECODE = "decode"
    KV = "kv"
    UNKNOWN = "unknown"  # the GPU worked and nobody told for whom


WORK = (Part.WEIGHTS, Part.PREFILL, Part.DECODE, Part.KV)


@dataclass(frozen=True, slots=True)
class Prices:
    """Joules per unit of work at one clock, all >= 0. To tell idling from work: seconds of a decode step, and
    what a chunk of a prompt adds to it."""

    step_j: float
    prefill_token_j: float
    decode_token_j: float
    kv_token_j: float
    idle_w: float
    step_s: float = 0.0
    chunk_s: float = 0.0

    def __post_init__(self) -> None:
        values = (self.step_j, self.prefill_token_j, self.decode_token_j, self.kv_token_j, self.idle_w)
        if not all(0.0 <= value < math.inf for value in values):
            raise ValueError(f"prices must be finite and >= 0, got {self}")


def prices_of(
    step: StepEnergy, clock_mhz: float, batch: float, kv_tokens: float, chunk_tokens: float
) -> Prices:
    """Prices around an operating point: each term is what it adds to the joules of a step there.

    The terms overlap (arithmetic hides behind the read of the weights), so a term's price is what would be
    saved without it, in the order weights, decode, KV, prefill.
    """
    batch, chunk = max(batch, 1.0), max(chunk_tokens, 1.0)
    loads = [(1.0, 0.0, 0.0), (batch, 0.0, 0.0), (batch, max(kv_tokens, 1.0), 0.0)]
    loads.append((batch, max(kv_tokens, 1.0), chunk))
    columns = [np.array(column, dtype=np.float64) for column in zip(*loads, strict=True)]
    clock = np.full(len(loads), clock_mhz)
    seconds = step.step_time_s(clock, *columns)
    joules = seconds * step.power_w(clock, *columns)
    alone, decode, read, mixed = (float(value) for value in np.maximum.accumulate(joules))
    token_j = (decode - alone) / max(batch - 1.0, 1.0)
    return Prices(
        step_j=max(alone - token_j, 0.0),
        prefill_token_j=(mixed - read) / chunk,
        decode_token_j=token_j,
        kv_token_j=(read - decode) / max(kv_tokens, 1.0),
        idle_w=float(step.idle_power_w(clock[:1])[0]),
        step_s=float(seconds[2]),
        chunk_s=max(float(seconds[3] - seconds[2]), 0.0),
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What one request had done for it in an interval. `key` None: of requests not told one by one."""

    key: Hashable | None
    steps: float  # in which it took part, chunks of its prompt included
    prefill_tokens: float
    decode_tokens: float
    kv_reads: float  # KV tokens, summed over its decode steps

    def expected_j(self, prices: Prices, step_share: float) -> tuple[float, float, float, float]:
        """In the order of `WORK`; `step_share`: the joules of a step's weights per request in it."""
        return (
            self.steps * step_share,
            self.prefill_tokens * prices.prefill_token_j,
            self.decode_tokens * prices.decode_token_j,
            self.kv_reads * prices.kv_token_j,
        )


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole shares of `total` >= 0 in proportion to `weights`, which add up to it: largest remainder.

    Raises ValueError for a negative total, for weights that are negative or not finite, or all zero.
    """
    if total < 0 or not weights or not all(0.0 <= weight < math.inf for weight in weights):
        raise ValueError(f"total and weights must be finite and >= 0, got {total} and {list(weights)[:8]}")
    whole = math.fsum(weights)
    if whole <= 0.0:
        raise ValueError("all weights are zero: there is nothing to divide by")
    exact = [total * (weight / whole) for weight in weights]
    shares = [math.floor(value) for value in exact]
    left = total - sum(shares)
    order = sorted((i for i in range(len(weights)) if weights[i] > 0.0), key=lambda i: shares[i] - exact[i])
    if 0 <= left <= len(order):
        for place in order[:left]:
            shares[place] += 1
    else:  # beyond 2^53 floats are coarser than one
        shares[max(order, key=lambda i: shares[i])] += left
    return shares


@dataclass(slots=True)
class _Open:
    parts: dict[Part, int] = field(default_factory=lambda: dict.fromkeys(WORK, 0))

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """One finished request and the joules attributed to it, by part."""

    key: Hashable
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    joules: float
    parts_j: dict[Part, float]

    @property
    def output_token_j(self) -> float | None:
        return self.joules / self.output_tokens if self.output_tokens > 0 else None


class EnergyBook:
    """Attributed energy in whole microjoules.

    Always: total = sum of `parts` = idle + unknown + not told one by one + open + finished + abandoned.
    """

    def __init__(self) -> None:
        self.parts: dict[Part, int] = dict.fromkeys(Part, 0)
        self.untold = 0  # work of requests not told one by one
        self.finished = 0
        self.abandoned = 0  # of requests whose end was not told
        self._open: dict[Hashable, _Open] = {}

    @property
    def total(self) -> int:
        """Microjoules charged so far."""
        return sum(self.parts.values())

    @property
    def open(self) -> int:
        """Microjoules of requests that run."""
        return sum(entry.total for entry in self._open.values())

    def charge(
        self, energy_uj: int, works: Sequence[Work], steps: float, idle_s: float, prices: Prices
    ) -> None:
        """Divide measured energy among an interval's `works`, its steps' weights among those who took part in
        them, and idling. With nothing to divide by it is UNKNOWN. Raises ValueError for negative energy."""
        if energy_uj < 0:
            raise ValueError(f"energy_uj = {energy_uj}: >= 0 is accepted")
        took_part = sum(work.steps for work in works)
        step_share = steps * prices.step_j / took_part if took_part > 0 else 0.0
        expected = [max(idle_s, 0.0) * prices.idle_w]
        for work in works:
            expected.extend(work.expected_j(prices, step_share))
        if not math.fsum(expected) > 0.0:
            self.parts[Part.UNKNOWN] += energy_uj
            return
        shares = apportion(energy_uj, expected)
        self.parts[Part.IDLE] += shares[0]
        for place, work in enumerate(works):
            mine = dict(zip(WORK, shares[1 + 4 * place : 5 + 4 * place], strict=True))
            self._book(work.key, mine)

    def _book(self, key: Hashable | None, shares: dict[Part, int]) -> None:
        entry = self._open.setdefault(key, _Open()) if key is not None else None
        for part, share in shares.items():
            self.parts[part] += share
            if entry is not None:
                entry.parts[part] += share
        if entry is None:
            self.untold += sum(shares.values())

    def unknown(self, energy_uj: int) -> None:
        """Energy of a time of which nothing is known. Raises ValueError for negative energy."""
        self.charge(energy_uj, (), 0.0, 0.0, Prices(0.0, 0.0, 0.0, 0.0, 0.0))

    def finish(
        self, key: Hashable, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0
    ) -> RequestEnergy:
        """Close a request; one that was never charged has no joules."""
        entry = self._open.pop(key, None) or _Open()
        self.finished += entry.total
        parts = {part: share / MICRO for part, share in entry.parts.items()}
        return RequestEnergy(key, prompt_tokens, output_tokens, cached_tokens, entry.total / MICRO, parts)

    def abandon(self, key: Hashable) -> None:
        """A request that will not be told of again."""
        entry = self._open.pop(key, None)
        self.abandoned += entry.total if entry is not None else 0

    def abandon_all(self) -> None:
        """Another engine run: nobody inside is left."""
        for key in list(self._open):
            self.abandon(key)


class Microjoules:
    """Whole microjoules from a running total in joules that only grows; a smaller one starts anew."""

    def __init__(self) -> None:
        self._last: int | None = None

    def since_last(self, total_j: float) -> int:
        """Microjoules since the last call, 0 at the first. Summed up they differ from the total's own growth
        by less than one."""
        if not math.isfinite(total_j):
            return 0
        now = round(total_j * MICRO)
        last, self._last = self._last, now
        return max(now - last, 0) if last is not None else 0
