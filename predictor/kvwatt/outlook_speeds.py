"""What the engine would do at every clock with the load it has: step times, shares of prompts, power."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape
from kvwatt.traffic import Traffic

FloatArray = npt.NDArray[np.float64]

MAX_PREFILL_SHARE = 0.97
LEAST_CHUNK_TOKENS = 64.0
ALWAYS_BUSY = 40.0  # requests inside; with so many an idle engine is out of the question


@dataclass(slots=True, eq=False)  # made at every decision, not frozen for the time that takes
class Speeds:
    """At every clock of the model: (clocks,)."""

    decode_s: FloatArray
    token_s: FloatArray  # per prompt token, on top of the decode step it rides with
    share: FloatArray  # of time that prompts to come take
    full_step_s: FloatArray  # a step whose whole token budget is used
    tbt_s: FloatArray
    power_w: FloatArray
    swing: float  # variance of the prompt tokens that come in a second


def speeds(
    model: CompiledModel, batch: float, kv_each: float, traffic: Traffic, shape: EngineShape, factor: float
) -> Speeds:
    """`factor`: what the model's times are multiplied by. `batch`: requests inside."""
    size = min(max(batch, 1.0), float(shape.max_num_seqs))
    room = max(shape.max_num_batched_tokens - size, LEAST_CHUNK_TOKENS)
    mean = traffic.prompt_mean_tokens
    chunk = min(max(mean, LEAST_CHUNK_TOKENS), room)
    steps_s, (decode_w, chunk_w, _) = model.with_prompts(size, size * kv_each, (0.0, chunk, room))
    if factor != 1.0:
        steps_s *= factor
    decode_s, chunk_s, full_s = steps_s
    token_s = np.maximum(chunk_s - decode_s, 0.0) * (1.0 / chunk)
    share = np.minimum(token_s * traffic.prompts_per_s, MAX_PREFILL_SHARE)
    power_w = decode_w + share * (chunk_w - decode_w)
    if batch < ALWAYS_BUSY:
        busy = 1.0 - exp(-max(batch, 0.05))
        power_w = busy * power_w + (1.0 - busy) * model.idle_power_w()
    swing = traffic.recent_per_s * (traffic.dispersion * mean**2 + traffic.prompt_sd_tokens**2)
    return Speeds(decode_s, token_s, share, full_s, decode_s / (1.0 - share), power_w, swing)


def gap_misses(s: Speeds, traffic: Traffic, shape: EngineShape, limit_s: float) -> FloatArray:
    """Share of the gaps between tokens above `limit_s`, (clocks,): of the steps, those that compute prompts,
    where a full one takes longer."""
    per_step = traffic.arrival_per_s * traffic.prompt_mean_tokens * s.tbt_s / shape.max_num_batched_tokens
    return np.where(s.full_step_s > limit_s, np.minimum(per_step, 1.0), 0.0)
