"""Options of a server for a load at its peak: pool, batch, a prompt's chunk, and how many servers. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from kvwatt.attribution import prices_of
from kvwatt.energy_prior import StepEnergy
from kvwatt.kv_budget import KvLoad, Reuse, in_flight, largest_batch
from kvwatt.kv_pools import Holding, pools_wanted
from kvwatt.state import EngineShape

CHUNKS = (512, 1024, 2048, 4096, 8192, 16384)
SEQS_STEP = 8
MOST_DOUBLINGS = 16
BLOCK, MOST_TOKENS = 16, 1e9
POOL_SHARE = 0.9  # of the memory, for weights and pool: vLLM's default
LEAST_GAIN = 0.01  # of prefill power, for a doubling of what is kept: less is not worth the memory


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one GPU, in bytes. `weights`: with activations; `kv_per_token`: of this GPU's share."""

    total: float
    weights: float
    kv_per_token: float


@dataclass(frozen=True, slots=True)
class Advice:
    """One option of the server and why."""

    option: str
    value: str
    reason: str


def advise(
    load: KvLoad,
    reuse: Reuse,
    step: StepEnergy,
    clock_mhz: float,
    tbt_limit_s: float | None,
    memory: Memory | None,
) -> list[Advice]:
    """Server options for a load at its peak rate: pool, batch and chunk, each with its reason."""
    room = largest_batch(step, clock_mhz, max(load.context_tokens, 1.0), tbt_limit_s, 4096)
    wanted = math.ceil(in_flight(load))
    seqs = max(SEQS_STEP * math.ceil(min(wanted, room) / SEQS_STEP), SEQS_STEP)
    held = f"{wanted} requests are in flight at {load.rate_upper_per_s:.2f}/s (Little, upper bound)"
    bound = f"; more than {room} would break TBT at {clock_mhz:.0f} MHz" if room < wanted else ""
    found = [Advice("--max-num-seqs", str(seqs), held + bound)]
    found.append(_chunk(step, clock_mhz, seqs, load.context_tokens, tbt_limit_s))
    if memory is not None:
        found.append(_pool(load, reuse, memory, seqs))
    return found


def _chunk(
    step: StepEnergy, clock_mhz: float, seqs: int, context_tokens: float, limit_s: float | None
) -> Advice:
    """The largest chunk whose step stays within the limit: fewer, larger steps cost less per prompt token."""
    one = np.ones(1)
    chosen, took_s = CHUNKS[0], 0.0
    for chunk in CHUNKS:
        batch, kv = seqs * one, seqs * context_tokens * one
        step_s = float(step.step_time_s(clock_mhz * one, batch, kv, chunk * one)[0])
        fits = chunk >= seqs and (limit_s is None or step_s <= limit_s)
        if fits or chunk == CHUNKS[0]:
            chosen, took_s = chunk, step_s
    limit = f"within TBT's {1e3 * limit_s:.0f} ms" if limit_s is not None else "no TBT is promised"
    if limit_s is not None and took_s > limit_s:
        limit = f"beyond TBT's {1e3 * limit_s:.0f} ms: only single gaps between tokens are that long"
    reason = f"a step with such a chunk and {seqs} decodes takes {1e3 * took_s:.0f} ms, {limit}"
    return Advice("--max-num-batched-tokens", str(max(chosen, seqs)), reason)


def _pool(load: KvLoad, reuse: Reuse, memory: Memory, seqs: int) -> Advice:
    in_use = min(in_flight(load), seqs) * load.context_tokens + load.largest_tokens
    new = load.rate_per_s * (load.prompt_tokens * (1.0 - reuse.share) + load.output_tokens)
    kept = _worth_keeping(reuse, new, max(load.context_tokens, 1.0))
    needed = memory.weights + (in_use + kept) * memory.kv_per_token
    share = min(max(math.ceil(100 * needed / memory.total) / 100, 0.01), 0.95)
    short = " (all there is: less is kept)" if needed > 0.95 * memory.total else ""
    hits = reuse.hit_ratio((share * memory.total - memory.weights) / memory.kv_per_token - in_use, new)
    reason = (
        f"weights {memory.weights / 1e9:.1f} GB, {in_use:.0f} tokens in flight and {kept:.0f} kept for "
        f"prefixes{short}: {100 * hits:.0f} % of prompt tokens found"
    )
    return Advice("--gpu-memory-utilization", f"{share:.2f}", reason)


def instances(
    load: KvLoad,
    reuse: Reuse,
    step: StepEnergy,
    clock_mhz: float,
    limits_s: tuple[float | None, float | None],
    memory: Memory | None,
    most: int,
    away_w: float,
) -> Advice:
    """How many of `most` servers need to hold a KV pool for the load of them all, at its mean and peak.

    `limits_s`: TTFT's and TBT's; `away_w`: watts of a server's group while it holds none. Raises ValueError.
    """
    tokens = (POOL_SHARE * memory.total - memory.weights) / memory.kv_per_token if memory else math.inf
    blocks = min(max(tokens, BLOCK), MOST_TOKENS) / BLOCK
    shape = EngineShape(BLOCK, int(blocks) + 1, 4096, CHUNKS[2])
    each = max(in_flight(load) / most, 1.0)
    prices = prices_of(step, clock_mhz, each, each * load.context_tokens, float(CHUNKS[2]))
    ready_w = float(step.idle_power_w(np.array([clock_mhz]))[0])
    held = Holding(ready_w, away_w, clock_mhz, prices.prefill_token_j, prices.chunk_s / CHUNKS[2],
                   ttft_limit_s=limits_s[0], tbt_limit_s=limits_s[1])  # fmt: skip
    rates = (load.rate_per_s, load.rate_upper_per_s)
    few, many = (
        pools_wanted(replace(load, rate_per_s=rate, rate_upper_per_s=rate), shape, reuse, step, held, most)
        for rate in rates
    )
    told = f"{few.count} at {rates[0]:.2f}/s, {many.count} at {rates[1]:.2f}/s"
    short = "" if many.fits else "; even all of them are too few at peak"
    reason = f"at the mean: {few.reason}; at peak: {many.reason}{short}"
    return Advice("servers that hold a KV pool", told, reason)


def _worth_keeping(reuse: Reuse, new_tokens_per_s: float, least_tokens: float) -> float:
    """Tokens to keep for prefixes: doubled as long as that finds LEAST_GAIN more of the prompts."""
    if reuse.share <= 0.0:
        return 0.0
    kept = least_tokens
    for _ in range(MOST_DOUBLINGS):
        more = reuse.hit_ratio(2 * kept, new_tokens_per_s)
        if more - reuse.hit_ratio(kept, new_tokens_per_s) < LEAST_GAIN and more >= 0.5 * reuse.share:
            break
        kept *= 2
    return kept
