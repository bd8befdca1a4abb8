"""Where batch and KV cache go over the coming engine steps: mean and upper bound.

throttLL'eM (HPCA 2025) projects each request to its predicted last token. Lengths are unknown here:
every request still runs after j more steps with probability S(g + j) / S(g), so batch and KV use are
sums of Bernoullis with a mean and a variance, and requests still to come add a Poisson-like stream.
Prompts that are not computed yet start to decode when the token budget, the seats and the KV cache let
them. Where lengths are known, `schedule.py` is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvwatt.length_classes import Requests
from kvwatt.present import Present, RequestLengths, equilibrium, present
from kvwatt.state import EngineShape, EngineState
from kvwatt.traffic import Traffic

FloatArray = npt.NDArray[np.float64]
__all__ = ["FloatArray", "KnownLengths", "Pace", "Projection", "RequestLengths", "project", "step_grid"]
_NONE: FloatArray = np.zeros(0)


class Pace(Protocol):
    """Step time at the clock in force: arrays of one length in, seconds out."""

    def step_s(self, decode_batch: FloatArray, kv_tokens: FloatArray, prefill: FloatArray) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class KnownLengths:
    """Lengths told beforehand, one total per request of the state, in its order."""

    total_tokens: FloatArray

    def alive(self, requests: Requests, ahead: FloatArray) -> FloatArray:
        end = np.minimum(self.total_tokens[requests.index], requests.limit)[:, None]
        return np.asarray(((requests.produced[:, None] + ahead < end) | (ahead <= 0)).astype(np.float64))

    def alive_and_some(
        self, requests: Requests, ahead: FloatArray, who: npt.NDArray[np.intp], more: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        return self.alive(requests, ahead.T).T, self.alive(requests.select(who), more[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class Projection:
    """Trajectories on a geometric grid of future steps; all arrays have the length of `steps`."""

    steps: FloatArray  # 0 = now
    batch_mean: FloatArray
    batch_upper: FloatArray
    kv_mean_tokens: FloatArray
    kv_upper_tokens: FloatArray
    kv_mean_blocks: FloatArray = field(default_factory=lambda: _NONE)  # what the cache holds: whole blocks
    prefill_tokens: FloatArray = field(default_factory=lambda: _NONE)  # expected per step
    times_s: FloatArray = field(default_factory=lambda: _NONE)  # when each step ends

    def kv_overflow_step(self, shape: EngineShape) -> float | None:
        """First projected step at which the upper bound no longer fits the KV cache, None if none."""
        over = np.flatnonzero(self.kv_upper_tokens > shape.kv_capacity_tokens)
        return float(self.steps[over[0]]) if over.size else None


def step_grid(horizon_steps: float, per_doubling: int = 1) -> FloatArray:
    """0, 1, 2, 4, ... up to the horizon: near steps matter most and cost the same."""
    last = max(float(horizon_steps), 1.0)
    powers = 2.0 ** (np.arange(0, int(np.log2(last) * per_doubling) + 1) / per_doubling)
    return np.unique(np.concatenate(([0.0], np.round(powers), [last])))


def project(
    state: EngineState,
    traffic: Traffic,
    shape: EngineShape,
    step_time_s: float,
    horizon_s: float,
    z: float = 1.64,
    *,
    lengths: RequestLengths | None = None,
    pace: Pace | None = None,
    per_doubling: int = 1,
) -> Projection:
    """Project one engine `horizon_s` ahead at `step_time_s` seconds a step.

    Per request where the state lists them, otherwise from batch size and KV use, taking the running
    requests as a sample of a service in equilibrium. `z` is the one-sided normal bound. `lengths` knows
    requests one by one (default: the traffic's). With `pace` every step takes as long as its own batch,
    KV and prompts make it, and `step_time_s` only sizes the grid.
    """
    steps = step_grid(horizon_s / step_time_s, per_doubling)
    inside = present(state, traffic, shape, steps, lengths)
    if pace is None:
        return _assemble(inside, traffic, shape, steps, steps * step_time_s, z)
    times = _times(pace, inside, traffic, steps, np.zeros_like(steps), steps * 0.0)
    coming, _ = _arrivals(traffic, steps, times)
    times = _times(pace, inside, traffic, steps, coming, times)
    return _assemble(inside, traffic, shape, steps, times, z)


def _assemble(
    inside: Present, traffic: Traffic, shape: EngineShape, steps: FloatArray, times: FloatArray, z: float
) -> Projection:
    new_batch, new_kv = _arrivals(traffic, steps, times)
    footprint = traffic.prompt_mean_tokens + traffic.output_mean_tokens
    batch_sd = np.sqrt(inside.batch_var + new_batch * traffic.dispersion)
    # A random sum: its variance is that of the number and that of the prompts.
    each_var = traffic.dispersion * footprint**2 + traffic.prompt_sd_tokens**2
    kv_sd = np.sqrt(inside.kv_var + new_batch * each_var)
    cap = float(shape.max_num_seqs)
    # Half a block per request is lost to rounding on average, a whole one at worst.
    batch_mean = np.minimum(inside.batch + new_batch, cap)
    batch_upper = np.minimum(inside.batch + new_batch + z * batch_sd, cap)
    half = shape.block_size / 2
    step_s = np.diff(times, append=times[-1]) / np.maximum(np.diff(steps, append=steps[-1] + 1), 1e-9)
    return Projection(
        steps=steps,
        batch_mean=batch_mean,
        batch_upper=batch_upper,
        kv_mean_tokens=inside.kv + new_kv,
        kv_upper_tokens=inside.kv + new_kv + z * kv_sd + batch_upper * half,
        kv_mean_blocks=inside.blocks + (new_kv + new_batch * half) / shape.block_size,
        prefill_tokens=inside.prefill_tokens + traffic.arrival_per_s * step_s * traffic.prompt_mean_tokens,
        times_s=times,
    )


def _arrivals(traffic: Traffic, steps: FloatArray, times: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Expected requests that arrive within the horizon and still run, and the KV they hold."""
    mean = traffic.output_mean_tokens
    alive_steps = mean * (1.0 - equilibrium(traffic, steps))  # integral of the survival of those who came
    step_s = np.divide(times, steps, out=np.zeros_like(times), where=steps > 0)
    count = traffic.arrival_per_s * step_s * alive_steps
    return count, count * (traffic.prompt_mean_tokens + alive_steps / 2)


def _times(
    pace: Pace,
    inside: Present,
    traffic: Traffic,
    steps: FloatArray,
    coming: FloatArray,
    times: FloatArray,
) -> FloatArray:
    """End of each step on the grid: the sum of step times at the loads on the way."""
    _, coming_kv = _arrivals(traffic, steps, times)
    batch = np.maximum(inside.batch - inside.prefilling, 0.0) + coming
    kv = inside.read + coming_kv
    bare = pace.step_s(batch, kv, inside.prefill_tokens)
    # Prompts to come: with c seconds a prompt token, T = bare + rate * T * prompt * c.
    chunk = np.full_like(steps, max(traffic.prompt_mean_tokens, 1.0))
    each = (pace.step_s(batch, kv, inside.prefill_tokens + chunk) - bare) / chunk
    busy = np.clip(traffic.arrival_per_s * traffic.prompt_mean_tokens * each, 0.0, 0.9)
    step_s = bare / (1.0 - busy)
    # The load on the grid is that after a step: steps between two points take their mean.
    between = np.diff(steps) * (step_s[:-1] + step_s[1:]) / 2
    return np.concatenate(([0.0], np.cumsum(between)))
