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
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, Traffic

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
class Factors:
    """Calibration: what the model's times are multiplied by for a typical value and for an upper bound."""

    typical: float = 1.0
    upper: float = 1.0


@dataclass(frozen=True, slots=True)
class OperatingPoints:
    """Latency bounds and expected power at each clock."""

    batch: FloatArray  # expected batch at the end of the horizon
    tbt_mean_s: FloatArray  # time between tokens of a long request
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
    t: Tables,
    state: EngineState,
    traffic: Traffic,
    reaction_s: float,
    horizon_s: float,
    factors: Factors,
    tbt_quantile: float = 0.99,
) -> OperatingPoints:
    """Evaluate every clock.

    TTFT hangs on single steps and takes their upper bound. TBT and E2E are means over many steps, where
    the scatter of one evens out: they take the typical step time. The tail of TBT comes from bursts, at
    the upper arrival rate; a long request averages over bursts, so its E2E takes the expected rate, else
    the tails of length, rate and step time would be multiplied.
    """
    inside = float(state.running + state.waiting)
    typical = _Flow.solve(t, factors.typical, traffic, traffic.arrival_per_s)
    soon = typical.batch_after(inside, horizon_s, traffic.output_mean_tokens)
    steady = np.maximum(soon, typical.steady_batch)
    long_tbt_s = _Place(t.batch, steady).read(typical.tbt_s)
    busy = _Flow.solve(t, factors.typical, traffic, traffic.arrival_upper_per_s)
    near = busy.batch_after(inside, horizon_s, traffic.output_mean_tokens)
    # The path from now to the horizon is monotone, so the larger end is the largest batch on it.
    worst = np.maximum(near, inside)
    worst = np.minimum(worst + np.sqrt(worst), t.batch[-1])
    place = _Place(t.batch, worst)
    step_s, prefill_s = place.read(busy.decode_s), place.read(busy.prefill_s)
    short_tbt_s = _short_tbt(step_s, prefill_s, traffic, tbt_quantile)
    beyond = factors.upper / factors.typical
    token_s = beyond * place.read(busy.chunk_s) / t.chunk_tokens
    first_s = traffic.prompt_mean_tokens * token_s
    return OperatingPoints(
        batch=soon,
        tbt_mean_s=long_tbt_s,
        tbt_s=np.maximum(short_tbt_s, long_tbt_s),
        ttft_s=_ttft(beyond * step_s, token_s, traffic, reaction_s),
        e2e_s=first_s + traffic.output_high_tokens * long_tbt_s,
        power_w=_power(t, typical, soon),
        carries=busy.carries,
    )


@dataclass(frozen=True, slots=True)
class _Flow:
    """The fixed point of rate, batch and time between tokens at one arrival rate.

    The first four have shape (GRID_POINTS, n_clocks).
    """

    decode_s: FloatArray
    chunk_s: FloatArray
    prefill_s: FloatArray  # per prompt token, on top of the decode step it rides with
    tbt_s: FloatArray
    steady_batch: FloatArray
    steady_tbt_s: FloatArray
    prefill_share: FloatArray
    carries: npt.NDArray[np.bool_]

    @classmethod
    def solve(cls, t: Tables, factor: float, traffic: Traffic, arrival_per_s: float) -> _Flow:
        """`factor` scales the model's times to the bound wanted."""
        decode_s, chunk_s = t.decode_s * factor, t.chunk_s * factor
        prefill_s = np.maximum(chunk_s - decode_s, 0.0) / t.chunk_tokens
        share = arrival_per_s * traffic.prompt_mean_tokens * prefill_s
        tbt_s = decode_s / (1.0 - np.minimum(share, MAX_PREFILL_SHARE))
        batch, reached = _crossing(t.batch, arrival_per_s * traffic.output_mean_tokens * tbt_s)
        top = share[-1]
        carries = reached & (top < MAX_PREFILL_SHARE)
        steady_tbt_s = _Place(t.batch, batch).read(tbt_s)
        return cls(decode_s, chunk_s, prefill_s, tbt_s, batch, steady_tbt_s, top, carries)

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
    weight = np.minimum(np.maximum(below / np.maximum(below + above, 1e-12), 0.0), 1.0)
    inner = grid[lower] + weight * (grid[first] - grid[lower])
    batch = np.where(first == 0, needed[0], inner)
    return np.where(found, batch, grid[-1]), np.asarray(found)


class _Place:
    """One batch per clock, located on the grid once to read several tables there; clamped at both ends."""

    __slots__ = ("_column", "_lower", "_upper", "_weight")

    def __init__(self, grid: FloatArray, batch: FloatArray) -> None:
        self._upper = np.minimum(np.maximum(grid.searchsorted(batch), 1), len(grid) - 1)
        self._lower = self._upper - 1
        low = grid[self._lower]
        share = (batch - low) / (grid[self._upper] - low)
        self._weight = np.minimum(np.maximum(share, 0.0), 1.0)
        self._column = np.arange(len(batch))

    def read(self, values: FloatArray) -> FloatArray:
        """Interpolate a (GRID_POINTS, n_clocks) table: (n_clocks,)."""
        low = values[self._lower, self._column]
        return np.asarray(low + self._weight * (values[self._upper, self._column] - low))


def _short_tbt(step_s: FloatArray, prefill_s: FloatArray, traffic: Traffic, quantile: float) -> FloatArray:
    """TBT at the promised quantile over all requests, short answers included.

    A burst of prompts stalls a short answer most. If the share p of answers is no longer than l_p, and
    of those the fraction a = (1 - quantile) / p meets a stall above s, then 1 - quantile of all requests
    do: so the quantile is the largest over p of (T + stall at 1 - a over l_p tokens). Prompts that wait
    now stall whoever runs for certain, those of a burst just over have stalled it already, those to come
    do by chance.
    Shapes: (levels, clocks) inside, (clocks,) returned.
    """
    levels = SHORT_LEVELS[:, None]
    tail = np.clip((1.0 - quantile) / levels, 1e-6, 1.0)
    tokens = traffic.output_short_tokens[:, None]
    prompt_s = traffic.prompt_mean_tokens * prefill_s
    rate = traffic.arrival_upper_per_s
    stretch = 1.0 - np.minimum(rate * prompt_s, MAX_PREFILL_SHARE)
    met = rate * tokens * step_s / stretch
    square = traffic.prompt_mean_tokens**2 * traffic.dispersion + traffic.prompt_sd_tokens**2
    waiting = traffic.unstarted
    variance = met * square + waiting * traffic.prompt_sd_tokens**2
    expected = (met + waiting) * traffic.prompt_mean_tokens + traffic.burst_tokens
    several = expected + _normal_upper(tail) * np.sqrt(variance)
    any_met = 1.0 - np.exp(-met)
    single = np.interp(1.0 - tail / np.maximum(any_met, 1e-9), PROMPT_LEVELS, traffic.prompt_quantiles_tokens)
    single = np.where(tail < any_met, single, 0.0)
    stall_s = np.maximum(np.maximum(several, single), 0.0) * prefill_s
    tbt_s = np.where(tail < 1.0, step_s + stall_s / tokens, step_s)
    return np.asarray(tbt_s.max(axis=0))


def _normal_upper(tail: FloatArray) -> FloatArray:
    """Normal quantile of 1 - tail within 0.005 (Tukey's lambda); tails above one half give negatives."""
    p = 1.0 - np.clip(tail, 1e-6, 1.0 - 1e-6)
    return np.asarray((p**0.135 - (1.0 - p) ** 0.135) / 0.1975)


def _ttft(step_s: FloatArray, token_s: FloatArray, traffic: Traffic, reaction_s: float) -> FloatArray:
    """The later of two: who waits longest now, and who arrives in a burst before the clock can rise.

    The first has waited already, behind at most all that wait; the second starts to wait now, behind
    them and the burst, its own prompt included (compound Poisson, 99 %).
    """
    mean, square = traffic.prompt_mean_tokens, traffic.prompt_sd_tokens**2
    ahead = traffic.unstarted * mean + np.sqrt(traffic.unstarted * square)
    waiting_s = (
        traffic.oldest_wait_s + step_s + ahead * token_s if traffic.unstarted else np.zeros_like(step_s)
    )
    coming = traffic.arrival_per_s * reaction_s
    burst_variance = (1.0 + coming) * square + coming * traffic.dispersion * mean**2
    burst = (1.0 + coming) * mean + Z99 * np.sqrt(burst_variance)
    arriving_s = step_s + (traffic.unstarted * mean + burst) * token_s
    return np.asarray(np.maximum(waiting_s, arriving_s))


def _power(t: Tables, flow: _Flow, batch: FloatArray) -> FloatArray:
    """Average power: busy share x busy power + idle share x idle power."""
    share = np.minimum(flow.prefill_share, 1.0)
    place = _Place(t.batch, batch)
    busy_w = (1.0 - share) * place.read(t.decode_w) + share * place.read(t.chunk_w)
    busy = 1.0 - np.exp(-batch)  # an M/G/inf service with `batch` requests on average is empty e^-batch
    return np.asarray(busy * busy_w + (1.0 - busy) * t.idle_w)
