"""How many requests would miss each promise at each clock: those inside one by one, and those to come.

At clock f a decode step takes d, a prompt token c more, and prompts to come take the share
rho = rate x prompt x c of all time, so tokens come every tau = d / (1 - rho) seconds. A request that has
produced g tokens, has decoded for u seconds, is a seconds old and still waits w seconds for its first
token behind others' prompts, ends K tokens later at w + s + K tau, with s the stall by prompts that wait
behind it. It misses, S being its own survival curve and D, M the limits of E2E and mean time between tokens,

    E2E   if K > (D - a - w - s) / tau
    TBT   if u + s + K tau > M (g - 1 + K)

so the probabilities are S(g + K*) / S(g) and, where it is late already but catches up, one minus that.
The clock can be raised later: what may yet change is taken at its mean, what has happened as it is.
Arrays are (requests, clocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel
from kvwatt.length_classes import Requests
from kvwatt.present import RequestLengths
from kvwatt.state import EngineShape, EngineState, Metric, RequestState, Slo
from kvwatt.traffic import PROMPT_LEVELS, Traffic

FloatArray = npt.NDArray[np.float64]

MAX_PREFILL_SHARE = 0.97
COMING_S = 3.0  # so many seconds of arrivals stand for those to come
COMING_LEVELS = np.array([0.5, 0.9, 0.99])  # of prompt and burst; each the upper end of its share
COMING_SHARES = np.array([0.5, 0.4, 0.1])
COMING_Z = np.array([0.0, 1.28, 2.33])
SHRINK_REQUESTS = 4.0  # the KV tokens of a request lean on what lengths say with this weight
LEAST_CHUNK_TOKENS = 64.0
MOST_DECODES, LOOKED_AT = 96, 64  # of more than so many that decode, so many are looked at
TURN_S = 0.1
TTFT_RAMP = (0.85, 1.15)  # of the limit: from certainly kept to certainly missed
USUAL_TBT_S = 0.05  # only sizes the time in which a request to come may meet a prompt
TINY = 1e-9
# Prompts to come, from their mean: standard deviations above it, each the upper end of its share.
BURST_Z = np.array([0.0, 2.0, 3.3])
BURST_SHARES = np.array([0.8, 0.15, 0.05])
BURST_FIRST = np.array([True, False, False])[:, None, None]


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
    kv_wait_tokens: FloatArray  # KV cache that must become free before it is admitted
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
    table = _columns(state, _told_of(now_s, state.requests))
    listed = table.shape[1] - len(COMING_LEVELS)
    prompts, burst = _coming(traffic, reaction_s)
    share = traffic.arrival_per_s * COMING_S * COMING_SHARES
    for column, values in zip(table, _to_come(now_s, prompts, share), strict=True):
        column[listed:] = values
    arrival_s, prompt, computed, produced, weight, limit, hint, first_s = table
    todo = np.where(computed < prompt, prompt + produced - computed, 0.0)
    flow = todo * weight
    through = np.cumsum(flow)
    queue = float(through[-1])
    ahead = np.where(todo > 0.0, through, 0.0)
    behind = queue - ahead
    ahead[listed:], behind[listed:] = queue + burst + prompts, _met(traffic)
    decodes = weight[:listed] * (todo[:listed] <= 0.0)
    decoding = float(decodes.sum())
    held = float(decodes @ (prompt + produced)[:listed])
    usual = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    return Cohort(
        requests=Requests(prompt, produced, limit, hint, np.arange(len(prompt))),
        weight=weight,
        age_s=np.maximum(now_s - arrival_s, 0.0),
        decoding_s=np.fmax(now_s - first_s, 0.0),  # 0 of NaN
        started=first_s == first_s,
        ahead_tokens=ahead,
        behind_tokens=behind,
        kv_wait_tokens=_kv_wait(computed, flow, prompts, shape.kv_capacity_tokens - state.kv_used_tokens),
        decoding=decoding,
        kv_each_tokens=(held + SHRINK_REQUESTS * usual) / (decoding + SHRINK_REQUESTS),
        inside=float(weight.sum()),
    )


_told = attrgetter(
    "arrival_s",
    "prompt_tokens",
    "computed_prompt_tokens",
    "output_tokens",
    "weight",
    "max_tokens",
    "hint_tokens",
    "first_token_s",
)
PROMPT, COMPUTED, WEIGHT, LIMIT = 1, 2, 4, 5


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


def _columns(state: EngineState, told: tuple[Sequence[RequestState], float]) -> FloatArray:
    """What `_told` names of each request, with room for those to come: (8, requests). None is NaN; no limit
    is inf."""
    (requests, each), room = told, len(COMING_LEVELS)
    rows = np.fromiter(chain.from_iterable(map(_told, requests)), np.float64, 8 * len(requests))
    table = np.empty((8, len(requests) + room))
    table[:, : len(requests)] = rows.reshape(-1, 8).T
    limit, weight = table[LIMIT, : len(requests)], table[WEIGHT, : len(requests)]
    limit[limit != limit] = np.inf
    if each > 1.0:
        weight[table[COMPUTED, : len(requests)] >= table[PROMPT, : len(requests)]] *= each
    known = float(weight.sum())
    if 0.0 < known < state.running + state.waiting:
        weight *= (state.running + state.waiting) / known
    return table


def _to_come(now_s: float, prompts: FloatArray, share: FloatArray) -> tuple[FloatArray | float, ...]:
    """The columns of those to come: their prompts count as computed, for nobody waits behind them yet."""
    return now_s, prompts, prompts, 0.0, share, np.inf, np.nan, np.nan


def _kv_wait(computed: FloatArray, flow: FloatArray, prompts: FloatArray, free_tokens: float) -> FloatArray:
    """KV cache that must become free before each is admitted: those before it come first."""
    asked = np.where(computed <= 0.0, flow, 0.0)
    before = np.cumsum(asked)
    wait = np.where(asked > 0.0, np.maximum(before - free_tokens, 0.0), 0.0)
    wait[-len(prompts) :] = np.maximum(before[-1] + prompts - free_tokens, 0.0)
    return wait


def _coming(traffic: Traffic, reaction_s: float) -> tuple[FloatArray, FloatArray]:
    """Prompts of requests to come, and the prompt tokens of the burst that they come behind."""
    prompts = np.interp(COMING_LEVELS, PROMPT_LEVELS, traffic.prompt_quantiles_tokens)
    mean, coming = traffic.prompt_mean_tokens, traffic.arrival_per_s * reaction_s
    square = traffic.dispersion * mean**2 + traffic.prompt_sd_tokens**2
    return prompts, coming * mean + COMING_Z * np.sqrt(coming * square)


def _met(traffic: Traffic) -> FloatArray:
    """The prompt that a request to come meets while it decodes, at COMING_LEVELS: where few come, the mean
    share of prompts says little, and one long prompt by chance breaks the mean of a short answer."""
    any_met = 1.0 - np.exp(-traffic.arrival_per_s * traffic.output_mean_tokens * USUAL_TBT_S)
    level = 1.0 - (1.0 - COMING_LEVELS) / max(any_met, TINY)
    return np.where(level > 0.0, np.interp(level, PROMPT_LEVELS, traffic.prompt_quantiles_tokens), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Speeds:
    """What the engine would do at every clock of the model with the load it has: (clocks,)."""

    decode_s: FloatArray
    token_s: FloatArray  # per prompt token, on top of the decode step it rides with
    share: FloatArray  # of time that prompts to come take
    full_step_s: FloatArray  # a step whose whole token budget is used
    tbt_s: FloatArray
    scatter_s: FloatArray  # standard deviation of the stalls by prompts to come, over one token
    power_w: FloatArray


def speeds(
    model: CompiledModel, batch: float, kv_each: float, traffic: Traffic, shape: EngineShape, factor: float
) -> Speeds:
    """`factor`: what the model's times are multiplied by. `batch`: requests inside."""
    size = min(max(batch, 1.0), float(shape.max_num_seqs))
    room = max(shape.max_num_batched_tokens - size, LEAST_CHUNK_TOKENS)
    chunk = min(max(traffic.prompt_mean_tokens, LEAST_CHUNK_TOKENS), room)
    load = (np.full(3, size), np.full(3, size * kv_each), np.array([0.0, chunk, room]))
    steps_s, steps_w = model.step_and_power(*load)
    decode_s, chunk_s, full_s = steps_s * factor
    decode_w, chunk_w, _ = steps_w
    token_s = np.maximum(chunk_s - decode_s, 0.0) / chunk
    share = np.minimum(traffic.recent_per_s * traffic.prompt_mean_tokens * token_s, MAX_PREFILL_SHARE)
    busy = 1.0 - np.exp(-max(batch, 0.05))
    busy_w = (1.0 - share) * decode_w + share * chunk_w
    power_w = busy * busy_w + (1.0 - busy) * model.idle_power_w()
    tbt_s = decode_s / (1.0 - share)
    square = traffic.dispersion * traffic.prompt_mean_tokens**2 + traffic.prompt_sd_tokens**2
    scatter_s = token_s * np.sqrt(traffic.recent_per_s * square * tbt_s)
    return Speeds(decode_s, token_s, share, full_s, tbt_s, scatter_s, power_w)


def gap_misses(s: Speeds, traffic: Traffic, shape: EngineShape, limit_s: float) -> FloatArray:
    """Share of the gaps between tokens above `limit_s`, (clocks,): of the steps, those that compute prompts,
    where a full one takes longer."""
    per_step = traffic.arrival_per_s * traffic.prompt_mean_tokens * s.tbt_s / shape.max_num_batched_tokens
    return np.where(s.full_step_s > limit_s, np.minimum(per_step, 1.0), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Waits:
    """Seconds until the first token, and of stalls after it, per request and clock."""

    first_s: FloatArray
    stall_s: FloatArray


def waits(those: Cohort, s: Speeds, clocks: npt.NDArray[np.intp], traffic: Traffic, budget: int) -> Waits:
    """`clocks`: columns to look at; `budget`: tokens per step, so that many prompts take many steps."""
    token_s, decode_s = s.token_s[clocks], s.decode_s[clocks]
    first_s = those.ahead_tokens[:, None] * (token_s + decode_s / budget)
    if those.kv_wait_tokens.any() and those.decoding > 0:
        # Each ending frees what a request holds, and each token of the others takes one.
        freed = those.decoding * max(those.kv_each_tokens / max(traffic.output_mean_tokens, 1.0) - 1.0, 0.1)
        first_s = np.maximum(first_s, those.kv_wait_tokens[:, None] / freed * s.tbt_s[clocks])
    return Waits(first_s, those.behind_tokens[:, None] * token_s)


def expected_misses(
    those: Cohort,
    s: Speeds,
    clocks: npt.NDArray[np.intp],
    wait: Waits,
    lengths: RequestLengths,
    slo: Slo,
    margin: float,
    strain: float = 1.0,
) -> dict[Metric, FloatArray]:
    """Per promise, the requests expected to miss it at each of `clocks`: never rising with the clock.

    `strain`, 0 to 1: how little room the top clock has to make good what a burst takes; without it chance
    does not count."""
    tau = s.tbt_s[clocks]
    kept = 1.0 - margin
    out: dict[Metric, FloatArray] = {}
    if slo.ttft is not None:
        low, high = (kept * slo.ttft.limit_s * edge for edge in TTFT_RAMP)
        who = np.flatnonzero(~those.started)
        late = (those.age_s[who, None] + wait.first_s[who] - low) / (high - low)
        out[Metric.TTFT] = those.weight[who] @ np.minimum(np.maximum(late, 0.0), 1.0)
    if slo.e2e is not None:
        left_s = kept * slo.e2e.limit_s - those.age_s[:, None] - wait.first_s - wait.stall_s
        alive = lengths.alive(those.requests, np.maximum(left_s, 0.0) / tau)
        out[Metric.E2E] = those.weight @ alive  # 1 where nothing is left
    if slo.tbt is not None:
        limit_s = kept * slo.tbt.limit_s
        slack_s = limit_s * np.maximum(those.requests.produced - 1.0, 0.0) - those.decoding_s
        slack_s = slack_s[:, None] - wait.stall_s
        out[Metric.TBT] = slow(those, slack_s, limit_s - tau, strain * s.scatter_s[clocks], lengths)
    return {m: np.maximum.accumulate(n[::-1])[::-1] for m, n in out.items()}


def slow(
    those: Cohort, slack_s: FloatArray, gain_s: FloatArray, scatter_s: FloatArray, lengths: RequestLengths
) -> FloatArray:
    """Requests expected to miss the mean time between tokens, (clocks,).

    `slack_s` (requests, clocks): what each may still lose; it gains `gain_s` with every token and loses z
    `scatter_s` sqrt(tokens) by prompts to come. It misses if it ends while it is behind: between the roots
    of a quadratic in the square root of the tokens. Few requests and clocks have such roots.
    """
    # Who has no such roots at the lowest clock has none at any.
    worst = (BURST_Z[-1] * scatter_s[0]) ** 2 - (4.0 * gain_s[0]) * slack_s[:, 0]
    near = np.flatnonzero((worst > 0.0) | (gain_s[0] <= 0.0))
    if not len(near):
        return np.zeros(len(gain_s))
    slack_s = slack_s[near]
    b = BURST_Z[:, None] * scatter_s
    disc = (b * b)[:, None, :] - (4.0 * gain_s) * slack_s
    # Where tokens come too slowly on average, chance adds little: level 0 stands for all.
    level, row, column = np.nonzero(np.where(gain_s > 0.0, disc > 0.0, BURST_FIRST))
    slack, gain = slack_s[row, column], gain_s[column]
    swing = b[level, column] + np.sqrt(np.maximum(disc[level, row, column], 0.0))
    ahead = np.empty((len(row), 2))
    ahead[:, 0] = (2.0 * np.maximum(slack, 0.0) / np.maximum(swing, TINY)) ** 2
    ahead[:, 1] = np.where(gain > 0.0, np.minimum(0.5 * swing / np.maximum(gain, TINY), 1e3) ** 2, np.inf)
    who = near[row]
    alive = lengths.alive(those.requests.select(who), ahead)
    share = np.where(gain > 0.0, BURST_SHARES[level], 1.0)
    missed = share * those.weight[who] * np.maximum(alive[:, 0] - alive[:, 1], 0.0)
    return np.asarray(np.bincount(column, missed, minlength=len(gain_s)), dtype=np.float64)
