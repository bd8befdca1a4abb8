"""What is compared: plants, loads as shares of capacity, promises, seeds. The one place that defines them.

Capacity is the highest request rate at which p99 TTFT is at most 3 s at the top clock. The presets:

    paper    mean TBT 200 ms, E2E = p99 at capacity, TTFT = 2x its p99 at capacity, chunks of 2048 tokens
    strict   mean TBT 100 ms, p99 ITL 100 ms, E2E half of paper's, TTFT = 1x its p99 at capacity,
             chunks of 512 tokens (a chunk of 2048 takes 280 ms on an L20 at its top clock: with it no
             clock keeps a p99 ITL of 100 ms)

Loads and the TTFT at capacity are those of the preset's own chunk size. A policy is feasible where at least
99 % of requests are within each limit (ITL: of token gaps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from kvwatt.state import EngineShape, Slo, SloTarget
from kvwatt_sim import cards
from kvwatt_sim.cards import Card
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.traces import TraceRequest, mean_rate_per_s, scale_rate
from kvwatt_sim.traces import thin as keep_some

# Seeds of thinning. What is tuned is tuned on seeds from TUNING_FROM on and scored on those below;
# capacity has seeds of its own, so that no scored run has set its own limits.
SCORING_SEEDS = (1, 2, 3, 4)
TUNING_FROM = 100
CAPACITY_SEEDS = (1001, 1002, 1003)

CAPACITY_TTFT_S = 3.0
CAPACITY_RESOLUTION = 0.005  # relative
QUANTILE = 0.99
DRAIN_S = 60.0  # charged to everybody after the last arrival; who takes longer is charged longer
PRESETS = ("paper", "strict")
CHUNKS = {"paper": 2048, "strict": 512}
# The lowest clock at which each card was measured: below, its laws are extrapolated and prove nothing.
# The H200's laws are assumed; half of its top clock is taken, as with the A100.
MEASURED_FROM_MHZ = {"l20": 900, "a100": 705, "h200": 990}
MOST_LOAD = 1.5
MAX_KEPT = 0.6  # a trace too slow for that is sped up first: seeds must differ


class ScenarioError(ValueError):
    """A plant, a preset or a load that does not exist; names the value and what is accepted."""


@dataclass(frozen=True, slots=True)
class Promises:
    """Limits of one preset."""

    slo: Slo

    @property
    def itl_s(self) -> float | None:
        """Limit of single gaps between tokens, where promised."""
        return self.slo.itl.limit_s if self.slo.itl is not None else None


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate with p99 TTFT within 3 s at the top clock, and the p99 latencies there."""

    rate_per_s: float
    ttft_s: float
    e2e_s: float


def plant(name: str) -> Card:
    """The card called `l20`, `a100-tp2`, `h200` ... Raises ScenarioError."""
    base, dash, tp = name.partition("-tp")
    if base not in cards.names() or (dash and not tp.isdecimal()):
        known = ", ".join(cards.names())
        raise ScenarioError(f"plant = {name!r}: one of {known} is accepted, with -tpN for N GPUs")
    try:
        return cards.load(base, int(tp or 1))
    except cards.CardError as error:
        raise ScenarioError(f"plant = {name!r}: {error}") from error


def clocks(card: Card) -> tuple[int, ...]:
    """The clocks a policy may lock, MHz ascending."""
    lowest = MEASURED_FROM_MHZ.get(card.name, card.supported_mhz[0])
    return tuple(clock for clock in card.supported_mhz if clock >= lowest)


def shape_for(card: Card, preset: str) -> EngineShape:
    """The engine as `preset` runs it; a KeyError for no preset."""
    shape = card.engine_shape()
    chunk = CHUNKS[preset]
    return replace(shape, max_num_batched_tokens=chunk, max_num_seqs=min(shape.max_num_seqs, chunk))


def fitted(card: Card, requests: Sequence[TraceRequest]) -> tuple[TraceRequest, ...]:
    """Prompts cut to what the model takes together with the answer, as its clients have to."""
    longest = min(card.max_model_len, (card.num_blocks - 1) * card.block_size)
    return tuple(
        request
        if request.prompt_tokens + request.output_tokens <= longest
        else replace(
            request,
            prompt_tokens=max(longest - request.output_tokens, 1),
            output_tokens=min(request.output_tokens, longest - 1),
        )
        for request in requests
    )


def thin(requests: Sequence[TraceRequest], rate_per_s: float, seed: int) -> tuple[TraceRequest, ...]:
    """The trace at a mean rate of about `rate_per_s`: each request kept with the same probability.

    A trace that would lose less than 1 - MAX_KEPT of its requests is sped up first."""
    speed = max(rate_per_s / mean_rate_per_s(requests) / MAX_KEPT, 1.0)
    faster = scale_rate(requests, speed) if speed > 1.0 else requests
    return keep_some(faster, min(rate_per_s / mean_rate_per_s(faster), 1.0), seed)


def horizon_s(requests: Sequence[TraceRequest]) -> float:
    """Until when every policy is charged for idling, too."""
    return (requests[-1].arrival_s if requests else 0.0) + DRAIN_S


@lru_cache(maxsize=64)
def capacity(
    card: Card,
    shape: EngineShape,
    trace: tuple[TraceRequest, ...],
    seeds: tuple[int, ...] = CAPACITY_SEEDS,
) -> Capacity:
    """Bisects the rate; p99 over the requests of all `seeds` together."""
    low, high = 0.0, 1.0
    while _top_clock(card, shape, trace, high, seeds).ttft_s <= CAPACITY_TTFT_S:
        low, high = high, 2.0 * high
    while high - low > CAPACITY_RESOLUTION * high:
        middle = (low + high) / 2.0
        kept = _top_clock(card, shape, trace, middle, seeds).ttft_s <= CAPACITY_TTFT_S
        low, high = (middle, high) if kept else (low, middle)
    return _top_clock(card, shape, trace, low, seeds)


def _top_clock(
    card: Card, shape: EngineShape, trace: tuple[TraceRequest, ...], rate_per_s: float, seeds: Sequence[int]
) -> Capacity:
    ttft, e2e = [], []
    for seed in seeds:
        requests = thin(trace, rate_per_s, seed)
        done = replay(card, shape, requests, FixedClock(card.boost_mhz), horizon_s(requests))
        found = done.served.latencies()
        ttft.append(found["ttft"])
        e2e.append(found["e2e"])
    p99 = [float(np.quantile(np.concatenate(values), QUANTILE)) for values in (ttft, e2e)]
    return Capacity(rate_per_s, *p99)


def promises(card: Card, preset: str, trace: tuple[TraceRequest, ...]) -> Promises:
    """The limits of `preset` for this plant and trace."""
    own = capacity(card, shape_for(card, preset), trace)
    if preset == "paper":
        return Promises(Slo(SloTarget(2.0 * own.ttft_s), SloTarget(0.2), SloTarget(own.e2e_s)))
    paper = capacity(card, shape_for(card, "paper"), trace)
    e2e = SloTarget(paper.e2e_s / 2.0)
    return Promises(Slo(SloTarget(own.ttft_s), SloTarget(0.1), e2e, itl=SloTarget(0.1)))


@dataclass(frozen=True, slots=True)
class Case:
    """One replay but for its policy, which may lock `clocks_mhz` (ascending)."""

    card: Card
    clocks_mhz: tuple[int, ...]
    shape: EngineShape
    requests: tuple[TraceRequest, ...]
    promises: Promises
    until_s: float


def check(preset: str, load: float) -> None:
    """Raises ScenarioError for a preset or a load that is not accepted."""
    if preset not in PRESETS:
        raise ScenarioError(f"slo = {preset!r}: one of {', '.join(PRESETS)} is accepted")
    if not 0.0 < load <= MOST_LOAD:
        raise ScenarioError(
            f"load = {load!r}: a share of capacity above 0 and at most {MOST_LOAD} is accepted"
        )


def case(card: Card, trace: Sequence[TraceRequest], load: float, preset: str, seed: int) -> Case:
    """`load`: share of the capacity with the preset's chunk size. Raises ScenarioError."""
    check(preset, load)
    shape, whole = shape_for(card, preset), fitted(card, trace)
    requests = thin(whole, load * capacity(card, shape, whole).rate_per_s, seed)
    limits = promises(card, preset, whole)
    return Case(card, clocks(card), shape, requests, limits, horizon_s(requests))
