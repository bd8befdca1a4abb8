"""How many instances need to hold a KV pool at all, as the rate moves.

The pool of one vLLM server is sized when it starts; of a fleet's KV cache the part that is held can move:
an instance that sleeps or stops holds none ("adaptive KV-cache resizing as QPS moves", Liu, JIEAS 4(1), 2026,
read for servers whose pool is fixed). For every count n that could hold one, the rate is divided by n and

    watts(n) = n ready + (most - n) asleep + n x prefill power at the hit ratio that n pools have
    fits(n): requests in flight within the batch that TBT allows, their tokens within a pool,
             and P(a prompt waits longer than TTFT leaves) <= the misses allowed

More pools find more prefixes, fewer idle less: the count of least watts among those that fit is wanted, all
where none fits. A prompt's wait is that of M/G/1 with an exponential tail (Pollaczek-Khinchine's mean).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from kvwatt.energy_prior import StepEnergy
from kvwatt.kv_budget import KvBudget, KvLoad, Reuse, in_flight, kv_budget
from kvwatt.lattice import Floats
from kvwatt.state import EngineShape

ROUNDS = 20  # of the fixed point
LEAST_LEFT = 0.02  # of the time, for decoding
MOST_INSIDE, OVERLOADED_S = 4096.0, 1e6


@dataclass(frozen=True, slots=True)
class Holding:
    """What it costs to hold a pool, in watts of an instance's whole GPU group, and what it is held for.

    `prefill_token_j`, `prefill_token_s`: of a prompt token at `clock_mhz`; `prompt_cv`: of what is computed
    of prompts; `ttft_limit_s`, `tbt_limit_s`: None where nothing is promised; `misses`: share allowed."""

    ready_w: float
    asleep_w: float
    clock_mhz: float
    prefill_token_j: float
    prefill_token_s: float
    prompt_cv: float = 1.0
    ttft_limit_s: float | None = None
    tbt_limit_s: float | None = None
    misses: float = 0.01

    def __post_init__(self) -> None:
        values = (self.ready_w, self.asleep_w, self.prefill_token_j, self.prefill_token_s, self.prompt_cv)
        if not all(0.0 <= value < math.inf for value in values) or not 0.0 < self.misses < 1.0:
            raise ValueError(f"watts, joules and seconds >= 0 and misses in (0, 1) are accepted, got {self}")


@dataclass(frozen=True, slots=True)
class Pools:
    """`count` instances hold a pool, each under `budget`; `watts`: of all, decoding left out."""

    count: int
    budget: KvBudget
    watts: float
    fits: bool
    reason: str


def pools_wanted(
    load: KvLoad, shape: EngineShape, reuse: Reuse, step: StepEnergy, held: Holding, most: int
) -> Pools:
    """The count for the load of the whole fleet, whose `residence_s` is what it is at the present count; at
    another the model tells. Raises ValueError for `most` < 1."""
    if most < 1:
        raise ValueError(f"most = {most}: at least 1 instance is accepted")
    counts = np.arange(1.0, most + 1.0)
    hits = np.zeros(most)
    for _ in range(2):  # what is found depends on how long requests stay, and the reverse
        stays = stays_s(load, counts, hits, step, held)
        found = [
            _pools(count, replace(load, residence_s=stay), shape, reuse, step, held, most)
            for count, stay in enumerate(stays.tolist(), 1)
        ]
        hits = np.array([pools.budget.hit_ratio for pools in found])
    fitting = [pools for pools in found if pools.fits]
    return min(fitting, key=lambda pools: pools.watts) if fitting else found[-1]


def stays_s(load: KvLoad, counts: Floats, hits: Floats, step: StepEnergy, held: Holding) -> Floats:
    """Seconds in the batch with the rate divided by each of `counts`, (n,): the fixed point of requests in
    flight and how long each stays (Little), `OVERLOADED_S` where there is none."""
    rates = load.rate_upper_per_s / counts
    service_s = load.prompt_tokens * (1.0 - hits) * held.prefill_token_s
    left = 1.0 - rates * service_s
    inside, stays, none = np.ones(len(counts)), np.zeros(len(counts)), np.zeros(len(counts))
    clock = np.full(len(counts), held.clock_mhz)
    for _ in range(ROUNDS):
        decode_s = step.step_time_s(clock, inside, inside * max(load.context_tokens, 1.0), none)
        stays = load.output_tokens * decode_s / np.maximum(left, LEAST_LEFT) + service_s
        inside = np.clip(0.5 * inside + 0.5 * rates * stays, 1.0, MOST_INSIDE)
    return np.where((left > LEAST_LEFT) & (inside < MOST_INSIDE), stays, OVERLOADED_S)


def _pools(
    count: int, load: KvLoad, shape: EngineShape, reuse: Reuse, step: StepEnergy, held: Holding, most: int
) -> Pools:
    part = replace(load, rate_per_s=load.rate_per_s / count, rate_upper_per_s=load.rate_upper_per_s / count)
    budget = kv_budget(part, shape, reuse, step, held.clock_mhz, held.prefill_token_j, held.tbt_limit_s)
    watts = count * (held.ready_w + budget.prefill_w) + (most - count) * held.asleep_w
    lacks = _lacks(part, shape, budget, held)
    told = f"{count} of {most} pools: {watts:.0f} W, {100 * budget.hit_ratio:.0f} % of prompts found"
    return Pools(count, budget, watts, lacks is None, told if lacks is None else f"{told}, {lacks}")


def _lacks(part: KvLoad, shape: EngineShape, budget: KvBudget, held: Holding) -> str | None:
    """What would break with this load on one instance; None: nothing."""
    wanted = in_flight(part)
    if wanted > budget.max_seqs:
        return f"{wanted:.0f} requests in flight break TBT, {budget.max_seqs} keep it"
    tokens = wanted * part.context_tokens + part.largest_tokens
    if tokens > (shape.num_blocks - 1) * shape.block_size:
        return f"{tokens:.0f} tokens do not fit the pool"
    late = prompts_late(part, budget.hit_ratio, held)
    return None if late <= held.misses else f"{100 * late:.1f} % of prompts wait too long"


def prompts_late(part: KvLoad, hit_ratio: float, held: Holding) -> float:
    """Share of prompts whose wait leaves too little of TTFT's limit to compute them; 0 without a promise."""
    if held.ttft_limit_s is None:
        return 0.0
    service_s = part.prompt_tokens * (1.0 - hit_ratio) * held.prefill_token_s
    busy = part.rate_upper_per_s * service_s
    left_s = held.ttft_limit_s - service_s
    if busy >= 1.0 or left_s <= 0.0:
        return 1.0
    mean_s = service_s * (1.0 + held.prompt_cv**2) / (2.0 * (1.0 - busy))  # of those who wait at all
    return busy * float(np.exp(-left_s / max(mean_s, 1e-9)))
