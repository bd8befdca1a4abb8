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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel
from kvwatt.length_classes import Requests
from kvwatt.present import RequestLengths
from kvwatt.state import EngineShape, EngineState, Metric, Slo
from kvwatt.traffic import PROMPT_LEVELS, Traffic

FloatArray = npt.NDArray[np.float64]

MAX_PREFILL_SHARE = 0.97
COMING_S = 3.0  # so many seconds of arrivals stand for those to come
COMING_LEVELS = np.array([0.5, 0.9, 0.99])  # of prompt and burst; each the upper end of its share
COMING_SHARES = np.array([0.5, 0.4, 0.1])
COMING_Z = np.array([0.0, 1.28, 2.33])
SHRINK_REQUESTS = 4.0  # the KV tokens of a request lean on what lengths say with this weight
LEAST_CHUNK_TOKENS = 64.0
TTFT_RAMP = (0.85, 1.15)  # of the limit: from certainly kept to certainly missed
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
    t = _Columns.of(state)
    todo = np.where(t.computed < t.prompt, t.prompt + t.produced - t.computed, 0.0)
    flow = todo * t.weight
    queue = float(flow.sum())
    ahead = np.where(todo > 0, np.cumsum(flow), 0.0)
    prompts, burst = _coming(traffic, reaction_s)
    share = traffic.arrival_per_s * COMING_S * COMING_SHARES
    decodes, started = todo <= 0, ~np.isnan(t.first_s)
    decoding = float(t.weight[decodes].sum())
    held = float((t.weight * (t.prompt + t.produced))[decodes].sum())
    usual = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    free = shape.kv_capacity_tokens - state.kv_used_tokens
    asked = np.cumsum(np.where(t.computed <= 0, flow, 0.0))
    nothing = np.zeros(len(prompts))
    return Cohort(
        requests=Requests.known(
            np.concatenate([t.prompt, prompts]),
            np.concatenate([t.produced, nothing]),
            np.concatenate([t.limit, nothing + np.inf]),
            np.concatenate([t.hint, nothing + np.nan]),
        ),
        weight=np.concatenate([t.weight, share]),
        age_s=np.concatenate([np.maximum(now_s - t.arrival_s, 0.0), nothing]),
        decoding_s=np.concatenate([np.where(started, np.maximum(now_s - t.first_s, 0.0), 0.0), nothing]),
        started=np.concatenate([started, nothing > 0]),
        ahead_tokens=np.concatenate([ahead, queue + burst + prompts]),
        behind_tokens=np.concatenate([queue - ahead, _met(traffic)]),
        kv_wait_tokens=np.concatenate(
            [
                np.where(t.computed <= 0, np.maximum(asked - free, 0.0), 0.0),
                np.maximum(float(asked[-1] if len(asked) else 0.0) + prompts - free, 0.0),
            ]
        ),
        decoding=decoding,
        kv_each_tokens=(held + SHRINK_REQUESTS * usual) / (decoding + SHRINK_REQUESTS),
        inside=float(t.weight.sum() + share.sum()),
    )


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


@dataclass(frozen=True, slots=True)
class _Columns:
    arrival_s: FloatArray
    prompt: FloatArray
    computed: FloatArray
    produced: FloatArray
    weight: FloatArray
    limit: FloatArray
    hint: FloatArray
    first_s: FloatArray

    @classmethod
    def of(cls, state: EngineState) -> _Columns:
        rows = [
            (
                r.arrival_s,
                r.prompt_tokens,
                r.computed_prompt_tokens,
                r.output_tokens,
                r.weight,
                np.inf if r.max_tokens is None else r.max_tokens,
                np.nan if r.hint_tokens is None else r.hint_tokens,
                np.nan if r.first_token_s is None else r.first_token_s,
            )
            for r in state.requests
        ]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 8).T
        known = float(table[4].sum())
        if 0.0 < known < state.running + state.waiting:
            table[4] *= (state.running + state.waiting) / known
        return cls(*table)


@dataclass(frozen=True, slots=True, eq=False)
class Speeds:
    """What the engine would do at every clock of the model with the load it has: (clocks,)."""

    decode_s: FloatArray
    token_s: FloatArray  # per prompt token, on top of the decode step it rides with
    share: FloatArray  # of time that prompts to come take
    full_step_s: FloatArray  # a step whose whole token budget is used
    tbt_s: FloatArray
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
    return Speeds(decode_s, token_s, share, full_s, decode_s / (1.0 - share), power_w)


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
) -> dict[Metric, FloatArray]:
    """Per promise, the requests expected to miss it at each of `clocks`: never rising with the clock."""
    tau = s.tbt_s[clocks]
    kept = 1.0 - margin
    out: dict[Metric, FloatArray] = {}
    if slo.ttft is not None:
        low, high = (kept * slo.ttft.limit_s * edge for edge in TTFT_RAMP)
        late = np.minimum(np.maximum((those.age_s[:, None] + wait.first_s - low) / (high - low), 0.0), 1.0)
        out[Metric.TTFT] = (those.weight * ~those.started) @ late
    ahead = []
    if slo.e2e is not None:
        left_s = kept * slo.e2e.limit_s - those.age_s[:, None] - wait.first_s - wait.stall_s
        ahead.append(np.maximum(left_s, 0.0) / tau)
    if slo.tbt is not None:
        limit_s = kept * slo.tbt.limit_s
        slack_s = limit_s * np.maximum(those.requests.produced - 1.0, 0.0) - those.decoding_s
        slack_s = slack_s[:, None] - wait.stall_s
        gain_s = limit_s - tau
        ahead.append(np.abs(slack_s) / np.maximum(np.abs(gain_s), 1e-5))
    if not ahead:
        return out
    alive = lengths.alive(those.requests, ahead[0] if len(ahead) == 1 else np.hstack(ahead))
    first, last = alive[:, : len(tau)], alive[:, -len(tau) :]
    if slo.e2e is not None:
        out[Metric.E2E] = those.weight @ np.where(left_s <= 0.0, 1.0, first)
    if slo.tbt is not None:
        late_now, catches_up = slack_s < -TINY, gain_s > 0.0
        missed = np.where(late_now, 1.0 - last * catches_up, last * ~catches_up)
        out[Metric.TBT] = those.weight @ missed
    return {m: np.maximum.accumulate(n[::-1])[::-1] for m, n in out.items()}
