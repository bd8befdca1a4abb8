"""The plant's laws over arrays: `gpu.step` and `gpu.power_w` for many loads and clocks at once.

Arguments broadcast against each other. Prompt work behind a context is told by its query-key pairs: a
chunk of n tokens behind c tokens has n (c + n / 2). tests/rivals holds both forms together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt_sim.cards import Card
from kvwatt_sim.gpu import SHARPNESS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of a step, and of compute- and memory-bound work in it (they may overlap)."""

    time_s: Floats
    compute_s: Floats
    memory_s: Floats


def work(
    card: Card, clock_mhz: Floats, decode_batch: Floats, kv_tokens: Floats, prefill: Floats, pairs: Floats
) -> Work:
    """One engine step of `decode_batch` decodes and `prefill` prompt tokens."""
    law = card.step
    x = clock_mhz / law.f_ref_mhz
    tokens = decode_batch * law.decode_ratio + prefill
    read_s = smooth_max(np.full_like(x, law.weights_s), law.weights_clock_s / x)
    gemm_s = law.compute_s_per_token * tokens / x
    attention_s = law.attention_s_per_pair * pairs / x
    kv_s = kv_tokens * kv_s_per_token(card, clock_mhz)
    fixed_s = read_s + law.tokens_s * tokens / (tokens + law.tokens_half)
    time_s = law.overhead_s + smooth_max(fixed_s, gemm_s) + kv_s + attention_s
    return Work(time_s, gemm_s + attention_s, read_s + kv_s)


def kv_s_per_token(card: Card, clock_mhz: Floats) -> Floats:
    """What a token of KV cache adds to a step."""
    x = clock_mhz / card.step.f_ref_mhz
    return smooth_max(np.full_like(x, card.step.kv_s_per_token), card.step.kv_clock_s_per_token / x)


def energy_j(card: Card, clock_mhz: Floats, done: Work) -> Floats:
    """Joules of the group during `done`; linear in its three parts at a given clock."""
    law = card.power
    r = clock_mhz / law.f_ref_mhz
    v = np.maximum(law.v_min, 1.0 + law.v_slope * (r - 1.0))
    resting_w = law.idle_w + law.idle_slope_w * r
    dynamic_j = law.compute_w * done.compute_s + law.memory_clock_w * done.memory_s
    total_j = resting_w * done.time_s + r * v * v * dynamic_j + law.memory_w * done.memory_s
    return np.asarray(card.tp * total_j)


def smooth_max(a: Floats, b: Floats) -> Floats:
    """(a^p + b^p)^(1/p), scaled by the larger so that nothing overflows; 0 where both are."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    ratio = np.divide(low, high, out=np.zeros(np.broadcast(a, b).shape), where=high > 0)
    return np.asarray(high * (1.0 + ratio**SHARPNESS) ** (1.0 / SHARPNESS))
