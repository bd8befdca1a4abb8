"""What an engine would do at every clock: batch, step time, latencies and power, vectorised over clocks.

Slower steps mean a larger batch (Little's law: B = arrival rate x output tokens x TBT), and prompts to
come interleave with decode steps, so the time between tokens at a clock is a fixed point, not a look-up.
All arrays have shape (n_clocks,) unless a docstring says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape, EngineState
from kvwatt.traffic import Traffic

FloatArray = npt.NDArray[np.float64]

GRID_POINTS = 12  # batch sizes at which the model is asked; between them times are nearly linear
MAX_PREFILL_SHARE = 0.95  # above it the fixed point diverges: the clock cannot carry the traffic
Z99 = 2.33  # normal quantile of 99 %


@dataclass(frozen=True, slots=True)
class Tables:
    """Model answers on a batch grid; times and powers of shape (GRID_POINTS, n_clocks)."""

    batch: FloatArray  # (GRID_POINTS,)
    decode_s: FloatArray  # step time without prefill
    chunk_s: FloatArray  # step time with `chunk_tokens` of prefill
    decode_w: FloatArray
    chunk_w: FloatArray
    idle_w: FloatArray  # (n_clocks,)
    chunk_tokens: float


@dataclass(frozen=True, slots=True)
class OperatingPoints:
    """Latency bounds and expected power at each clock."""

    batch: FloatArray  # expected batch at the end of the horizon
    tbt_mean_s: FloatArray  # upper bound on the time between tokens of a long request
    tbt_s: FloatArray  # the same at the promised quantile, for a short request that meets a burst
    ttft_s: FloatArray
    e2e_s: FloatArray
    power_w: FloatArray
    carries: npt.NDArray[np.bool_]  # the clock keeps up with the upper arrival rate


def tables(model: CompiledModel, state: EngineState, traffic: Traffic, shape: EngineShape) -> Tables:
    """Ask the model once for every batch on the grid, with and without a prefill chunk."""
    grid = np.geomspace(1.0, max(float(shape.max_num_seqs), 2.0), GRID_POINTS)
    kv = grid * _kv_per_request(state, traffic)
    chunk = float(np.clip(traffic.prompt_mean_tokens, 16.0, shape.max_num_batched_tokens))
    batches, kvs = np.concatenate((grid, grid)), np.concatenate((kv, kv))
    prefill = np.repeat((0.0, chunk), GRID_POINTS)
    times = model.step_time_s(batches, kvs, prefill)
    watts = model.power_w(batches, kvs, prefill)
    n = GRID_POINTS
    return Tables(grid, times[:n], times[n:], watts[:n], watts[n:], model.idle_power_w(), chunk)


def _kv_per_request(state: EngineState, traffic: Traffic) -> float:
    """KV tokens held by a running request: observed, shrunk to what the lengths say in equilibrium."""
    expected = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    return (state.kv_used_tokens + 4.0 * expected) / (state.running + 4.0)


def operating_points(
    t: Tables, state: EngineState, traffic: Traffic, reaction_s: float, horizon_s: float, time_factor: float
) -> OperatingPoints:
    """Evaluate every clock. `time_factor` scales model times to their calibrated upper bound."""
    decode_s, chunk_s = t.decode_s * time_factor, t.chunk_s * time_factor
    prefill_s_per_token = np.maximum(chunk_s - decode_s, 0.0) / t.chunk_tokens
    inside = float(state.running + state.waiting)
    upper = _Flow.solve(t.batch, decode_s, prefill_s_per_token, traffic, traffic.arrival_upper_per_s)
    near = upper.batch_after(inside, horizon_s, traffic.output_mean_tokens)
    # The path from now to the horizon is monotone, so the larger end is the largest batch on it.
    worst = np.minimum(np.maximum(near, inside), t.batch[-1])
    worst = np.minimum(worst + np.sqrt(worst), t.batch[-1])
    step_s, interference_s = _at(t.batch, decode_s, worst), _at(t.batch, prefill_s_per_token, worst)
    tbt_mean_s = _at(t.batch, upper.tbt_s, worst)
    tbt_s = _burst_tbt(step_s, interference_s, traffic, traffic.output_short_tokens)
    own_s = traffic.prompt_high_tokens * _at(t.batch, chunk_s, worst) / t.chunk_tokens
    ttft_s = _ttft(step_s, own_s, _at(t.batch, chunk_s, worst) / t.chunk_tokens, traffic, reaction_s)
    long_tbt_s = np.minimum(tbt_s, _burst_tbt(step_s, interference_s, traffic, traffic.output_high_tokens))
    e2e_s = own_s + traffic.output_high_tokens * np.maximum(long_tbt_s, tbt_mean_s)
    batch, power_w = _expected(t, traffic, inside, horizon_s)
    return OperatingPoints(
        batch, tbt_mean_s, np.maximum(tbt_s, tbt_mean_s), ttft_s, e2e_s, power_w, upper.carries
    )


@dataclass(frozen=True, slots=True)
class _Flow:
    """The fixed point of rate, batch and time between tokens at one arrival rate."""

    tbt_s: FloatArray  # (GRID_POINTS, n_clocks)
    steady_batch: FloatArray
    steady_tbt_s: FloatArray
    prefill_share: FloatArray
    carries: npt.NDArray[np.bool_]

    @classmethod
    def solve(
        cls,
        grid: FloatArray,
        decode_s: FloatArray,
        prefill_s: FloatArray,
        traffic: Traffic,
        arrival_per_s: float,
    ) -> _Flow:
        share = arrival_per_s * traffic.prompt_mean_tokens * prefill_s
        tbt_s = decode_s / (1.0 - np.minimum(share, MAX_PREFILL_SHARE))
        demand = arrival_per_s * traffic.output_mean_tokens
        batch, reached = _crossing(grid, demand * tbt_s)
        top = share[-1]
        return cls(tbt_s, batch, _at(grid, tbt_s, batch), top, reached & (top < MAX_PREFILL_SHARE))

    def batch_after(self, inside: float, horizon_s: float, output_tokens: float) -> FloatArray:
        """Relaxation to the steady batch with the time constant of one mean request."""
        remains = np.exp(-horizon_s / np.maximum(output_tokens * self.steady_tbt_s, 1e-6))
        return self.steady_batch + (inside - self.steady_batch) * remains


def _crossing(grid: FloatArray, needed: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Batch at which grid == needed(batch), per clock; the largest batch where it is never reached."""
    gap = grid[:, None] - needed
    reached = gap >= 0
    first = np.argmax(reached, axis=0)
    found = reached.any(axis=0)
    column = np.arange(needed.shape[1])
    lower = np.maximum(first - 1, 0)
    below, above = -gap[lower, column], gap[first, column]
    weight = np.clip(below / np.maximum(below + above, 1e-12), 0.0, 1.0)
    inner = grid[lower] + weight * (grid[first] - grid[lower])
    batch = np.where(first == 0, needed[0], inner)
    return np.where(found, batch, grid[-1]), found


def _at(grid: FloatArray, values: FloatArray, batch: FloatArray) -> FloatArray:
    """Interpolate a (GRID_POINTS, n_clocks) table at one batch per clock; clamped at both ends."""
    upper = np.clip(np.searchsorted(grid, batch), 1, len(grid) - 1)
    lower = upper - 1
    weight = np.clip((batch - grid[lower]) / (grid[upper] - grid[lower]), 0.0, 1.0)
    column = np.arange(values.shape[1])
    return values[lower, column] * (1.0 - weight) + values[upper, column] * weight


def _burst_tbt(step_s: FloatArray, prefill_s: FloatArray, traffic: Traffic, tokens: float) -> FloatArray:
    """Mean time between the tokens of a request of `tokens`, at the 99 % count of prompts it meets."""
    prompt_s = traffic.prompt_mean_tokens * prefill_s
    stretch = 1.0 - np.minimum(traffic.arrival_per_s * prompt_s, MAX_PREFILL_SHARE)
    met = traffic.arrival_per_s * tokens * step_s / stretch
    met_upper = met + Z99 * np.sqrt(traffic.dispersion * met)
    return step_s + met_upper * prompt_s / tokens


def _ttft(
    step_s: FloatArray, own_s: FloatArray, token_s: FloatArray, traffic: Traffic, reaction_s: float
) -> FloatArray:
    """Wait so far, the step in progress, everyone ahead, and the burst before the clock can rise."""
    coming = traffic.arrival_per_s * reaction_s
    burst = coming + Z99 * np.sqrt(traffic.dispersion * max(coming, 0.05))
    ahead_tokens = (traffic.unstarted + burst) * traffic.prompt_mean_tokens
    return traffic.oldest_wait_s + step_s + ahead_tokens * token_s + own_s


def _expected(t: Tables, traffic: Traffic, inside: float, horizon_s: float) -> tuple[FloatArray, FloatArray]:
    """Expected batch and average power: busy share x busy power + idle share x idle power."""
    prefill_s = np.maximum(t.chunk_s - t.decode_s, 0.0) / t.chunk_tokens
    flow = _Flow.solve(t.batch, t.decode_s, prefill_s, traffic, traffic.arrival_per_s)
    batch = flow.batch_after(inside, horizon_s, traffic.output_mean_tokens)
    share = np.minimum(flow.prefill_share, 1.0)
    busy_w = (1.0 - share) * _at(t.batch, t.decode_w, batch) + share * _at(t.batch, t.chunk_w, batch)
    busy = 1.0 - np.exp(-batch)  # an M/G/inf service with `batch` requests on average is empty e^-batch
    return batch, busy * busy_w + (1.0 - busy) * t.idle_w
