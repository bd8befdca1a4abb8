"""How much of the KV cache requests in flight may hold, and what is left to prefixes that come back.

A vLLM pool is sized when the server starts; at run time the lever is how it is used ("adaptive KV-cache
resizing", Liu, JIEAS 4(1), 2026). Of P blocks, B may be in use by running requests, enforced at admission,
and P - B stay for prefix caching. A smaller B keeps more prefixes (fewer prompt tokens to compute), bounds
the batch and with it TBT; too small a B makes requests wait and the batch inefficient.

    requests in flight   N = rate W (Little), upper bound N + z sqrt(N)
    B                    upper bound x tokens of a request, and room for the largest one
    kept for             t = (P - B) / (new tokens per second): how long a block stays unused (Che, 2002)
    hit ratio            share of prompt tokens that come back x P(they come back within t)
    prefill power        rate x prompt x (1 - hit ratio) x joules per prompt token
    batch                largest with step(batch, its KV) <= TBT limit / margin

B is the smallest that keeps who comes from waiting: prefill power falls with every block that B leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvwatt.energy_prior import StepEnergy
from kvwatt.state import EngineShape

Z = 2.0  # of the upper bound on requests in flight
TBT_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Reuse:
    """What of the prompts comes back, and when. `share`: of prompt tokens, with a cache of any size;
    `after_s`: quantiles of the time until they do, ascending, at equal steps from 0 to 1."""

    share: float
    after_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share = {self.share}: 0 to 1 is accepted")
        if len(self.after_s) < 2 or list(self.after_s) != sorted(self.after_s) or self.after_s[0] < 0:
            raise ValueError("after_s: at least two ascending seconds >= 0 are accepted")

    def hit_ratio(self, kept_tokens: float, new_tokens_per_s: float) -> float:
        """Of prompt tokens, with so many tokens kept while so many new ones come in."""
        if new_tokens_per_s <= 0.0:
            return self.share
        stays_s = max(kept_tokens, 0.0) / new_tokens_per_s
        levels = np.linspace(0.0, 1.0, len(self.after_s))
        return self.share * float(np.interp(stays_s, self.after_s, levels))


@dataclass(frozen=True, slots=True)
class KvLoad:
    """Traffic of one engine. `residence_s`: mean time in the batch; `context_tokens`: mean KV of one."""

    rate_per_s: float
    rate_upper_per_s: float
    prompt_tokens: float
    output_tokens: float
    residence_s: float
    context_tokens: float
    largest_tokens: float

    def __post_init__(self) -> None:
        values = (self.rate_per_s, self.rate_upper_per_s, self.prompt_tokens, self.output_tokens)
        more = (self.residence_s, self.context_tokens, self.largest_tokens)
        if not all(0.0 <= value < math.inf for value in (*values, *more)):
            raise ValueError(f"a load must be finite and >= 0, got {self}")


@dataclass(frozen=True, slots=True)
class KvBudget:
    """`in_use_blocks` bounds admission, `max_seqs` the batch; the others are what to expect of that."""

    in_use_blocks: int
    max_seqs: int
    kept_blocks: int
    hit_ratio: float
    prefill_w: float
    tbt_s: float
    reason: str


def in_flight(load: KvLoad) -> float:
    """Upper bound on requests in flight."""
    mean = load.rate_upper_per_s * load.residence_s
    return mean + Z * math.sqrt(mean)


def largest_batch(
    step: StepEnergy, clock_mhz: float, context_tokens: float, limit_s: float | None, most: int
) -> int:
    """The most requests that a step within the TBT limit can hold, at least 1; `most` without a limit."""
    if limit_s is None:
        return most
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if _step_s(step, clock_mhz, middle, context_tokens) * TBT_MARGIN <= limit_s:
            low = middle
        else:
            high = middle - 1
    return low


def _step_s(step: StepEnergy, clock_mhz: float, batch: float, context_tokens: float) -> float:
    one = np.ones(1)
    return float(step.step_time_s(clock_mhz * one, batch * one, batch * context_tokens * one, 0 * one)[0])


def kv_budget(
    load: KvLoad,
    shape: EngineShape,
    reuse: Reuse,
    step: StepEnergy,
    clock_mhz: float,
    prefill_token_j: float,
    tbt_limit_s: float | None,
) -> KvBudget:
    """The budget for this load; never less than the largest request nor more than the pool."""
    pool = max(shape.num_blocks - 1, 1)
    room = largest_batch(step, clock_mhz, max(load.context_tokens, 1.0), tbt_limit_s, shape.max_num_seqs)
    wanted = max(in_flight(load), 1.0)
    seqs = min(max(math.ceil(wanted), 1), room)
    tokens = seqs * max(load.context_tokens, 1.0) + load.largest_tokens
    in_use = min(max(math.ceil(tokens / shape.block_size), 1), pool)
    kept = pool - in_use
    new = load.rate_per_s * (load.prompt_tokens * (1.0 - reuse.share) + load.output_tokens)
    hits = reuse.hit_ratio(kept * shape.block_size, new)
    prefill_w = load.rate_per_s * load.prompt_tokens * (1.0 - hits) * prefill_token_j
    tbt_s = _step_s(step, clock_mhz, min(wanted, room), load.context_tokens)
    bound = "TBT" if wanted > room else "the rate"
    reason = (
        f"{wanted:.0f} requests in flight at {load.rate_upper_per_s:.2f}/s, {room} within TBT: "
        f"{in_use} of {pool} blocks in use (bound by {bound}), {kept} kept: "
        f"{100 * hits:.0f} % of prompts found"
    )
    return KvBudget(in_use, room, kept, hits, prefill_w, tbt_s, reason)


def reuse_of(times: Sequence[tuple[float, Sequence[int]]], block_size: int, quantiles: int = 65) -> Reuse:
    """From a trace: arrival times with the hashes of each prompt's full blocks, in order of arrival."""
    seen: dict[int, float] = {}
    after: list[float] = []
    blocks = 0
    for at_s, hashes in times:
        blocks += len(hashes)
        prefix = True
        for item in hashes:
            prefix = prefix and item in seen
            if prefix:
                after.append(at_s - seen[item])
            seen[item] = at_s
    if not after:
        return Reuse(0.0, (0.0, 1.0))
    levels = np.quantile(np.array(after), np.linspace(0.0, 1.0, quantiles))
    return Reuse(len(after) / blocks, tuple(float(value) for value in np.maximum.accumulate(levels)))
