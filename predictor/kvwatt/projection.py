"""Where batch and KV cache go over the coming engine steps: mean and upper bound.

throttLL'eM (HPCA 2025) projects each request to its predicted last token. Lengths are unknown here:
every request still runs after j more steps with probability S(g + j) / S(g), so batch and KV use are
sums of Bernoullis with a mean and a variance, and requests still to come add a Poisson-like stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.state import EngineShape, EngineState
from kvwatt.traffic import Survival, Traffic

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Projection:
    """Trajectories on a geometric grid of future steps; all arrays have the length of `steps`."""

    steps: FloatArray  # 0 = now
    batch_mean: FloatArray
    batch_upper: FloatArray
    kv_mean_tokens: FloatArray
    kv_upper_tokens: FloatArray

    def kv_overflow_step(self, shape: EngineShape) -> float | None:
        """First projected step at which the upper bound no longer fits the KV cache, None if none."""
        over = np.flatnonzero(self.kv_upper_tokens > shape.kv_capacity_tokens)
        return float(self.steps[over[0]]) if over.size else None


def step_grid(horizon_steps: float) -> FloatArray:
    """0, 1, 2, 4, ... up to the horizon: near steps matter most and cost the same."""
    last = max(float(horizon_steps), 1.0)
    powers = 2.0 ** np.arange(0, int(np.log2(last)) + 1)
    return np.unique(np.concatenate(([0.0], powers, [last])))


def project(
    state: EngineState,
    traffic: Traffic,
    shape: EngineShape,
    step_time_s: float,
    horizon_s: float,
    z: float = 1.64,
) -> Projection:
    """Project one engine `horizon_s` ahead at `step_time_s` seconds a step.

    Per request where the state lists them, otherwise from batch size and KV use, taking the running
    requests as a sample of a service in equilibrium. `z` is the one-sided normal bound.
    """
    steps = step_grid(horizon_s / step_time_s)
    if state.requests and traffic.lengths is not None:
        batch, kv, batch_var, kv_var = _from_requests(state, traffic.lengths, steps)
    else:
        batch, kv, batch_var, kv_var = _from_aggregates(state, traffic, steps)
    new_batch, new_kv = _arrivals(traffic, steps, step_time_s)
    footprint = traffic.prompt_mean_tokens + traffic.output_mean_tokens
    batch_sd = np.sqrt(batch_var + new_batch * traffic.dispersion)
    kv_sd = np.sqrt(kv_var + new_batch * traffic.dispersion * footprint**2)
    cap = float(shape.max_num_seqs)
    # Half a block per request is lost to rounding on average, a whole one at worst.
    batch_mean = np.minimum(batch + new_batch, cap)
    batch_upper = np.minimum(batch + new_batch + z * batch_sd, cap)
    return Projection(
        steps=steps,
        batch_mean=batch_mean,
        batch_upper=batch_upper,
        kv_mean_tokens=kv + new_kv,
        kv_upper_tokens=kv + new_kv + z * kv_sd + batch_upper * shape.block_size / 2,
    )


def _from_requests(
    state: EngineState, lengths: Survival, steps: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Mean and variance of batch and KV over the running requests; arrays of shape (steps,)."""
    rows = state.requests
    weight = np.array([r.weight for r in rows])
    done = np.array([r.output_tokens for r in rows], dtype=np.float64)
    held = np.array([r.computed_prompt_tokens for r in rows], dtype=np.float64) + done
    limit = np.array([np.inf if r.max_tokens is None else r.max_tokens for r in rows])
    now = np.maximum(lengths.survival(done), 1e-9)
    future = done[:, None] + steps[None, :]
    alive = np.clip(lengths.survival(future.ravel()).reshape(future.shape) / now[:, None], 0.0, 1.0)
    alive[future >= limit[:, None]] = 0.0
    alive[:, 0] = 1.0
    tokens = held[:, None] + steps[None, :]
    # A cohort of weight w stands for w requests that end independently.
    variance = weight[:, None] * alive * (1.0 - alive)
    return weight @ alive, weight @ (alive * tokens), variance.sum(axis=0), (variance * tokens**2).sum(axis=0)


def _from_aggregates(
    state: EngineState, traffic: Traffic, steps: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    inside = float(state.running + state.waiting)
    alive = _equilibrium(traffic, steps)
    each = state.kv_used_tokens / state.running if state.running > 0 else traffic.prompt_mean_tokens
    waiting_kv = state.waiting * traffic.prompt_mean_tokens
    kv = (state.kv_used_tokens + waiting_kv) * alive + inside * alive * steps
    variance = inside * alive * (1.0 - alive)
    return inside * alive, kv, variance, variance * (each + steps) ** 2


def _equilibrium(traffic: Traffic, steps: FloatArray) -> FloatArray:
    if traffic.lengths is not None:
        return np.clip(traffic.lengths.equilibrium_survival(steps), 0.0, 1.0)
    return np.exp(-steps / traffic.output_mean_tokens)


def _arrivals(traffic: Traffic, steps: FloatArray, step_time_s: float) -> tuple[FloatArray, FloatArray]:
    """Expected requests that arrive within the horizon and still run, and the KV they hold."""
    mean = traffic.output_mean_tokens
    alive_steps = mean * (1.0 - np.exp(-steps / mean))  # integral of the survival of those who came
    count = traffic.arrival_per_s * step_time_s * alive_steps
    return count, count * (traffic.prompt_mean_tokens + alive_steps / 2)
