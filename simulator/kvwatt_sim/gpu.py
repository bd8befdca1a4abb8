"""The plant's laws: what one engine step takes and what it draws, in closed form. Standard library only.

With x = f / f_ref, n = decode_batch * decode_ratio + prefill_tokens and smax a smooth maximum:

    weights = smax(weights_s, weights_clock_s / x) + tokens_s * n / (n + tokens_half)   memory-bound
    gemm    = compute_s_per_token * n / x                                              compute-bound
    kv      = kv_tokens * smax(kv_s_per_token, kv_clock_s_per_token / x)               memory-bound
    attn    = attention_s_per_pair * prefill_tokens * (context + prefill_tokens / 2) / x   compute-bound
    T(f)    = overhead_s + smax(weights, gemm) + kv + attn

Weights are read once per step whatever the batch, so small batches are flat in the clock; once the
matrix products outlast that read the step goes with 1/f. At low clocks even memory slows down, because
too few requests are in flight: the *_clock_* terms. Power follows `nvml.spec.PowerLaw`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from math import isfinite
from typing import NamedTuple, Protocol

from kvwatt_sim.nvml.spec import PowerLaw

SHARPNESS = 12.0  # exponent of the smooth maximum: 6 % above the larger where both are equal


@dataclass(frozen=True, slots=True)
class StepLaw:
    """Parameters of the step time of one engine (all its GPUs together)."""

    f_ref_mhz: float
    overhead_s: float
    weights_s: float
    weights_clock_s: float
    tokens_s: float
    tokens_half: float
    compute_s_per_token: float
    decode_ratio: float
    kv_s_per_token: float
    kv_clock_s_per_token: float
    attention_s_per_pair: float

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isfinite(value) or value < 0:
                raise ValueError(f"step law {item.name} = {value!r}: a finite number >= 0 is needed")
        for name in ("f_ref_mhz", "tokens_half", "compute_s_per_token"):
            if getattr(self, name) == 0:
                raise ValueError(f"step law {name} = 0: a number above 0 is needed")


class Plant(Protocol):
    """Whatever carries the laws and the limits of a GPU: a hardware card."""

    @property
    def step(self) -> StepLaw: ...
    @property
    def power(self) -> PowerLaw: ...
    @property
    def supported_mhz(self) -> tuple[int, ...]: ...
    @property
    def power_cap_w(self) -> float: ...


class Step(NamedTuple):
    """One engine step: how long it takes and the shares of it in compute- and memory-bound work."""

    time_s: float
    compute: float
    memory: float


def step(
    card: Plant,
    clock_mhz: float,
    decode_batch: float,
    kv_tokens: float,
    prefill_tokens: float,
    prefill_context_tokens: float = 0.0,
) -> Step:
    """Time and activity of a step that decodes `decode_batch` requests holding `kv_tokens` of KV cache
    and prefills `prefill_tokens` prompt tokens behind `prefill_context_tokens` already in the cache."""
    law = card.step
    x = clock_mhz / law.f_ref_mhz
    tokens = decode_batch * law.decode_ratio + prefill_tokens
    read_s = _smooth_max(law.weights_s, law.weights_clock_s / x)
    weights_s = read_s + law.tokens_s * tokens / (tokens + law.tokens_half)
    gemm_s = law.compute_s_per_token * tokens / x
    kv_s = kv_tokens * _smooth_max(law.kv_s_per_token, law.kv_clock_s_per_token / x)
    pairs = prefill_tokens * (prefill_context_tokens + prefill_tokens / 2)
    attention_s = law.attention_s_per_pair * pairs / x
    time_s = law.overhead_s + _smooth_max(weights_s, gemm_s) + kv_s + attention_s
    return Step(time_s, min((gemm_s + attention_s) / time_s, 1.0), min((read_s + kv_s) / time_s, 1.0))


def step_time_s(
    card: Plant,
    clock_mhz: float,
    decode_batch: float,
    kv_tokens: float,
    prefill_tokens: float,
    prefill_context_tokens: float = 0.0,
) -> float:
    """Seconds that one step takes; see `step`."""
    return step(card, clock_mhz, decode_batch, kv_tokens, prefill_tokens, prefill_context_tokens).time_s


def activity(
    card: Plant,
    clock_mhz: float,
    decode_batch: float,
    kv_tokens: float,
    prefill_tokens: float,
    prefill_context_tokens: float = 0.0,
) -> tuple[float, float]:
    """Shares (0..1) of a step in compute-bound and in memory-bound work: (u_c, u_m); see `step`."""
    return step(card, clock_mhz, decode_batch, kv_tokens, prefill_tokens, prefill_context_tokens)[1:]


def power_w(card: Plant, clock_mhz: float, u_c: float, u_m: float) -> float:
    """Watts of one GPU at an actual clock; the power cap acts on the clock, not here."""
    return power_law_w(card.power, clock_mhz, u_c, u_m)


def power_law_w(law: PowerLaw, clock_mhz: float, u_c: float, u_m: float) -> float:
    """The law stated at `PowerLaw`; the same arithmetic is in the simulated NVML's `law.c`."""
    r = clock_mhz / law.f_ref_mhz
    v = max(law.v_min, 1.0 + law.v_slope * (r - 1.0))
    dynamic_w = law.compute_w * u_c + law.memory_clock_w * u_m
    return law.idle_w + law.idle_slope_w * r + r * v * v * dynamic_w + law.memory_w * u_m


def capped_clock_mhz(card: Plant, clock_mhz: int, u_c: float, u_m: float) -> int:
    """The clock the power cap leaves: the highest supported one at most `clock_mhz` under the cap."""
    clocks = card.supported_mhz[: bisect_right(card.supported_mhz, clock_mhz)]
    if not clocks:
        return card.supported_mhz[0]
    # Power rises with the clock at a fixed activity, so the clocks under the cap are a prefix.
    allowed = bisect_right(clocks, card.power_cap_w, key=lambda mhz: power_w(card, mhz, u_c, u_m))
    return clocks[max(allowed - 1, 0)]


def _smooth_max(a: float, b: float) -> float:
    """(a^p + b^p)^(1/p), scaled by the larger so that nothing overflows."""
    high, low = (a, b) if a >= b else (b, a)
    if high <= 0.0:
        return 0.0
    ratio: float = (1.0 + (low / high) ** SHARPNESS) ** (1.0 / SHARPNESS)
    return high * ratio
