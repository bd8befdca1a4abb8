"""The requests inside one by one, as columns, and some that stand for those of the next seconds.

Prompts are computed in the scheduler's order: each has those before it ahead and those after it behind;
who decodes has all of them behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import exp, sqrt
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from kvwatt.length_classes import Requests
from kvwatt.state import EngineShape, EngineState, Metric, RequestState
from kvwatt.traffic import PROMPT_LEVELS, Traffic

FloatArray = npt.NDArray[np.float64]

COMING_S = 3.0  # so many seconds of arrivals stand for those to come
COMING_LEVELS = (0.5, 0.9, 0.99)  # of prompt and burst; each the upper end of its share
COMING_SHARES = (0.5, 0.4, 0.1)
COMING_Z = (0.0, 1.28, 2.33)
LEVELS: tuple[float, ...] = tuple(PROMPT_LEVELS.tolist())
SHRINK_REQUESTS = 4.0  # the KV tokens of a request lean on what lengths say with this weight
MOST_DECODES, LOOKED_AT = 96, 48  # of more than so many that decode, so many are looked at
TURN_S = 0.1
USUAL_TBT_S = 0.05  # only sizes the time in which a request to come may meet a prompt
TINY = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Columns of the requests inside, in the scheduler's order, and of some that stand for those to come."""

    requests: Requests
    weight: FloatArray
    age_s: FloatArray
    decoding_s: FloatArray  # since the first token; 0 before it
    started: npt.NDArray[np.bool_]
    ahead_tokens: FloatArray  # prompt tokens computed until its first token, its own included
    behind_tokens: FloatArray  # prompt tokens that will stall it while it decodes
    kv_wait_tokens: FloatArray | None  # KV cache to become free before its admission; None: free for all
    decoding: float  # requests that decode
    kv_each_tokens: float
    inside: float  # requests, those to come included

    def open(self, metric: Metric) -> float:
        """Requests that may still keep or miss a promise."""
        return float(self.weight @ ~self.started) if metric is Metric.TTFT else self.inside


def cohort(
    now_s: float, state: EngineState, traffic: Traffic, shape: EngineShape, reaction_s: float
) -> Cohort:
    """Requests not listed one by one, where there are such, are taken to be like those that are."""
    table, inside = _columns(now_s, state)
    listed = table.shape[1] - len(COMING_LEVELS)
    columns, burst, met = coming(traffic, reaction_s)
    table[:, listed:] = columns
    table[ARRIVAL, listed:] = now_s
    prompt, computed, produced, weight, limit, hint = table[PROMPT:]
    started = table[FIRST] == table[FIRST]
    age_s, decoding_s = np.fmax(now_s - table[:PROMPT], 0.0)  # 0 of NaN
    queued = (computed < prompt).nonzero()[0]
    ahead, behind = np.zeros((2, len(prompt)))
    length = prompt + produced
    queue, decodes, decoding = 0.0, weight[:listed], inside
    if len(queued):
        through = (weight[queued] * (length[queued] - computed[queued])).cumsum()
        queue = float(through[-1])
        ahead[queued] = through
        behind[:listed] = queue
        behind[queued] -= through
        decodes = decodes.copy()
        decodes[queued] = 0.0
        decoding = float(decodes.sum())
    ahead[listed:] = queue + burst
    behind[listed:] = met
    usual = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    held = float(decodes @ length[:listed])
    free_tokens = shape.kv_capacity_tokens - state.kv_used_tokens
    return Cohort(
        requests=Requests(prompt, produced, limit, hint, numbered(len(prompt))),
        weight=weight,
        age_s=age_s,
        decoding_s=decoding_s,
        started=started,
        ahead_tokens=ahead,
        behind_tokens=behind,
        kv_wait_tokens=_kv_wait(computed, queued, ahead, columns[PROMPT], free_tokens, queue),
        decoding=decoding,
        kv_each_tokens=(held + SHRINK_REQUESTS * usual) / (decoding + SHRINK_REQUESTS),
        inside=inside + traffic.arrival_per_s * COMING_S,
    )


_told = attrgetter(
    "arrival_s",
    "first_token_s",
    "prompt_tokens",
    "computed_prompt_tokens",
    "output_tokens",
    "weight",
    "max_tokens",
    "hint_tokens",
)
ARRIVAL, FIRST, PROMPT, COMPUTED, PRODUCED, WEIGHT, LIMIT, HINT = range(8)


def _told_of(now_s: float, requests: Sequence[RequestState]) -> tuple[Sequence[RequestState], float]:
    """Those that are looked at, and for how many of those that decode each of them stands.

    All, up to MOST_DECODES. Of more every second, third ... that decodes, in turn, so that a decision costs
    the same whatever the batch; who has prompt left to compute is always looked at."""
    if len(requests) <= MOST_DECODES:
        return requests, 1.0
    prompts = [r for r in requests if r.computed_prompt_tokens < r.prompt_tokens]
    decodes = requests
    if prompts:
        decodes = [r for r in requests if r.computed_prompt_tokens >= r.prompt_tokens]
    every = -(-len(decodes) // LOOKED_AT)
    some = decodes[round(now_s / TURN_S) % every :: every]
    return [*some, *prompts], len(decodes) / max(len(some), 1)


def _columns(now_s: float, state: EngineState) -> tuple[FloatArray, float]:
    """What `_told` names of each request, with room for those to come: (8, requests), None being NaN and no
    limit inf; and how many requests they are in all."""
    requests, each = _told_of(now_s, state.requests)
    count = len(requests)
    rows = np.fromiter(chain.from_iterable(map(_told, requests)), np.float64, 8 * count)
    table = np.empty((8, count + len(COMING_LEVELS)))
    table[:, :count] = rows.reshape(-1, 8).T
    limit, weight = table[LIMIT, :count], table[WEIGHT, :count]
    np.fmin(limit, np.inf, out=limit)
    if each > 1.0:
        weight[table[COMPUTED, :count] >= table[PROMPT, :count]] *= each
    known, inside = float(weight.sum()), float(state.running + state.waiting)
    if not 0.0 < known < inside:
        return table, known
    weight *= inside / known
    return table, inside


def _kv_wait(
    computed: FloatArray,
    queued: npt.NDArray[np.intp],
    through: FloatArray,
    prompts: FloatArray,
    free_tokens: float,
    queue: float,
) -> FloatArray | None:
    """KV cache that must become free before each is admitted: those before it come first."""
    if queue + prompts[-1] <= free_tokens:
        return None
    flow = np.diff(through[queued], prepend=0.0)
    asked = np.where(computed[queued] <= 0.0, flow, 0.0)
    wait = np.zeros(len(computed))
    wait[queued] = np.where(asked > 0.0, np.maximum(asked.cumsum() - free_tokens, 0.0), 0.0)
    wait[-len(prompts) :] = np.maximum(float(asked.sum()) + prompts - free_tokens, 0.0)
    return wait


def coming(traffic: Traffic, reaction_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of requests to come, at COMING_LEVELS: their columns as `_told` names them (8, levels), but for the
    time; the prompt tokens until the first token beside the queue, their own and those of a burst; and the
    prompt tokens that one of them meets while it decodes."""
    return _coming(
        traffic.arrival_per_s,
        traffic.dispersion,
        traffic.prompt_mean_tokens,
        traffic.prompt_sd_tokens,
        traffic.output_mean_tokens,
        tuple(traffic.prompt_quantiles_tokens.tolist()),
        reaction_s,
    )


@lru_cache(maxsize=64)  # the same from page to page, and often longer
def _coming(
    arrival_per_s: float,
    dispersion: float,
    prompt_mean: float,
    prompt_sd: float,
    output_mean: float,
    quantiles: tuple[float, ...],
    reaction_s: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    count = arrival_per_s * reaction_s
    spread = sqrt(count * (dispersion * prompt_mean**2 + prompt_sd**2))
    # Where few come, the mean share of prompts says little, and one long prompt by chance breaks the mean of
    # a short answer.
    any_met = max(1.0 - exp(-arrival_per_s * output_mean * USUAL_TBT_S), TINY)
    prompts = [_at(level, quantiles) for level in COMING_LEVELS]
    met = [_at(1.0 - (1.0 - level) / any_met, quantiles) for level in COMING_LEVELS]
    ahead = [count * prompt_mean + z * spread + own for z, own in zip(COMING_Z, prompts, strict=True)]
    columns = np.empty((8, len(prompts)))
    # Their prompts count as computed, for nobody waits behind them yet.
    columns[PROMPT] = columns[COMPUTED] = prompts
    columns[PRODUCED], columns[LIMIT], columns[HINT], columns[FIRST] = 0.0, np.inf, np.nan, np.nan
    columns[WEIGHT] = [arrival_per_s * COMING_S * share for share in COMING_SHARES]
    return columns, np.array(ahead), np.array(met)


def _at(level: float, quantiles: Sequence[float]) -> float:
    """A quantile of prompts from those at PROMPT_LEVELS; no tokens at level 0 and below."""
    if level <= 0.0:
        return 0.0
    above = max(bisect_left(LEVELS, level), 1)
    low, high = LEVELS[above - 1], LEVELS[above]
    return quantiles[above - 1] + (level - low) / (high - low) * (quantiles[above] - quantiles[above - 1])


@lru_cache(maxsize=512)
def numbered(count: int) -> npt.NDArray[np.intp]:
    """0, 1, 2 ... as an array that nobody may write."""
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers
