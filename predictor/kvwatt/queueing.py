"""What one instance does at a rate and a clock: TTFT, TBT, E2E, batch and watts, and so its capacity.

Two chains share the step time. `queueing_batch_size`: how many requests decode, slow against a step.
`queueing_batch`: prompt tokens that wait, fast; solved at several batch sizes and mixed. Each needs the
other's result (steps lengthen with prompts, the room for prompts shrinks with decodes), which is the fixed
point of rate, batch and clock. docs/instances-model.md has the equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.capacity_table import CapacityPoint, CapacityTable
from kvwatt.compiled import CompiledModel
from kvwatt.queueing_batch import Solved, StepQueue
from kvwatt.queueing_batch_size import BatchSize, batch_size, fitting
from kvwatt.queueing_demand import NEVER, Demand, Latency, lengths
from kvwatt.queueing_pace import request_tbt
from kvwatt.state import EngineShape, Slo

__all__ = [
    "CapacityPoint",
    "CapacityTable",
    "Demand",
    "InstanceQueue",
    "Latency",
    "MixedQueue",
    "Operation",
    "Regime",
    "capacity_table",
    "lengths",
]

FloatArray = npt.NDArray[np.float64]

HORIZON_S = 8.0  # longest wait for prompts that is told from longer ones
LEAST_ROWS, MOST_ROWS, BINS = 6, 16, 256
NODES = 14  # batch sizes at which the model is asked
GROUPS = np.array([0.0, 0.3, 0.6, 0.85, 0.96, 1.0])  # of batch sizes: a prompt queue is solved for each
RELAXATIONS = 2
WIDER, CLOSE = 1.25, 0.02  # steps and end of the search for the largest rate
SPREAD = np.array([0.1, 0.3, 0.5, 0.7, 0.9])  # quantiles that stand for a distribution


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One rate at one clock. `carries`: seats and steps keep up; otherwise the latencies are never."""

    clock_mhz: int
    rate_per_s: float
    carries: bool
    batch: float
    tbt_s: float  # mean time between tokens
    ttft: Latency
    tbt: Latency  # of requests: the mean over each one's tokens
    e2e: Latency
    itl: Latency  # single gaps
    power_w: float

    def keeps(self, slo: Slo) -> bool:
        """Every promise holds."""
        pairs = ((slo.ttft, self.ttft), (slo.tbt, self.tbt), (slo.e2e, self.e2e), (slo.itl, self.itl))
        return self.carries and all(
            target is None or got.within(target.limit_s) >= target.quantile for target, got in pairs
        )


class InstanceQueue:
    """One engine under one kind of traffic; asked for any rate and any clock of the model.

    `factor`: what the model's times are multiplied by (calibration). Raises ValueError where not even one
    request fits the KV cache.
    """

    def __init__(self, model: CompiledModel, shape: EngineShape, demand: Demand, factor: float = 1.0) -> None:
        self.model, self.shape, self.demand = model, shape, demand
        self._fits = _fits(shape, demand, _prefilling(model, demand))
        self.seats = len(self._fits) - 1
        sizes = np.geomspace(1.0, self.seats, NODES) if self.seats > 1 else np.ones(1)
        self._batch = np.append(0.0, np.unique(np.round(sizes)))
        room = np.maximum(shape.max_num_batched_tokens - self._batch, 16.0)
        full_s = model.step_time_s(np.zeros(1), np.zeros(1), room[:1])[0, -1]
        self._rows = int(np.clip(BINS * full_s / HORIZON_S, LEAST_ROWS, MOST_ROWS))
        part = np.arange(self._rows + 1) / self._rows
        batch = np.repeat(self._batch, self._rows + 1)
        prefill = (room[:, None] * part).ravel()
        step_s, step_w = model.step_and_power(batch, batch * demand.context_tokens, prefill)
        grid = (len(self._batch), self._rows + 1, len(model.clocks_mhz))
        self._step_s, self._step_w = (step_s * factor).reshape(grid), step_w.reshape(grid)
        self._room = room

    def at(self, rate_per_s: float, clock: int) -> Operation:
        """Column `clock` of the model's clocks."""
        demand = self.demand
        every = np.arange(self.seats + 1.0)
        tau_nodes = self._mean_steps(rate_per_s, clock)
        size = self._size(rate_per_s, np.interp(every, self._batch, tau_nodes))
        if not size.stable:
            return self._never(rate_per_s, clock)
        for _ in range(RELAXATIONS):
            batches, weights = _groups(size)
            solved = [self._queue(rate_per_s, clock, b) for b in batches]
            if any(s is None for s in solved):
                return self._never(rate_per_s, clock)
            queues = [s for s in solved if s is not None]
            guess = np.interp(batches, self._batch, tau_nodes)
            ratio = np.array([s.mean_step_s for s in queues]) / guess
            tau_nodes = tau_nodes * np.interp(self._batch, batches, ratio)
            size = self._size(rate_per_s, np.interp(every, self._batch, tau_nodes))
            if not size.stable:
                return self._never(rate_per_s, clock)
        return _assembled(self, rate_per_s, clock, size, batches, weights, queues, demand)

    def watts_at(self, rates_per_s: FloatArray, clock: int) -> FloatArray:
        """Average watts at many rates without the queues: the mean step at the fixed point of Little's law.

        Within about 2 % of `at`, in a hundredth of the time."""
        part, out = np.arange(self._rows + 1) / self._rows, np.empty(len(rates_per_s))
        idle_w, every = float(self.model.idle_power_w()[clock]), np.arange(self.seats + 1.0)
        for i, rate in enumerate(rates_per_s):
            tau = self._mean_steps(float(rate), clock)
            size = self._size(float(rate), np.interp(every, self._batch, tau))
            batch = min(size.mean, float(self.seats))
            room = self.shape.max_num_batched_tokens - batch
            tokens = rate * self.demand.prompts.mean * np.interp(batch, self._batch, tau)
            busy_w = np.interp(min(tokens / room, 1.0), part, self._row(self._step_w, clock, batch))
            out[i] = idle_w + (1.0 - float(size.share[0])) * (busy_w - idle_w)
        return out

    def _never(self, rate_per_s: float, clock: int) -> Operation:
        full_s, full_w = float(self._step_s[-1, -1, clock]), float(self._step_w[-1, -1, clock])
        mhz, seats = self.model.clocks_mhz[clock], float(self.seats)
        return Operation(mhz, rate_per_s, False, seats, full_s, NEVER, NEVER, NEVER, NEVER, full_w)

    def _size(self, rate_per_s: float, tau_s: FloatArray) -> BatchSize:
        demand = self.demand
        return batch_size(rate_per_s, demand.decode_steps, tau_s, self._fits, demand.dispersion)

    def _mean_steps(self, rate_per_s: float, clock: int) -> FloatArray:
        """Mean step time per batch node as if every step computed the mean prompt tokens: a first guess."""
        step_s = self._step_s[:, :, clock]
        tau = step_s[:, 0]
        part = np.arange(self._rows + 1) / self._rows
        for _ in range(30):
            share = np.minimum(rate_per_s * self.demand.prompts.mean * tau / self._room, 1.0)
            tau = np.array([np.interp(s, part, row) for s, row in zip(share, step_s, strict=True)])
        return tau

    def _queue(self, rate_per_s: float, clock: int, batch: float) -> Solved | None:
        """The prompt queue beside `batch` decodes; None where it is not stable."""
        room = self.shape.max_num_batched_tokens - batch
        queue = StepQueue(
            step_s=self._row(self._step_s, clock, batch),
            bin_tokens=max(room, 16.0) / self._rows,
            prompts=self.demand.prompts,
            rate_per_s=rate_per_s,
            dispersion=self.demand.dispersion,
            size=BINS,
        )
        return queue.solve() if queue.stable else None

    def _row(self, values: FloatArray, clock: int, batch: float) -> FloatArray:
        """A (nodes, rows + 1, clocks) table at one clock and any batch: (rows + 1,)."""
        up = int(np.clip(np.searchsorted(self._batch, batch), 1, len(self._batch) - 1))
        low = up - 1
        share = (batch - self._batch[low]) / (self._batch[up] - self._batch[low])
        return np.asarray(values[low, :, clock] + share * (values[up, :, clock] - values[low, :, clock]))

    def one_more_s(self, clock: int, batch: float) -> float:
        """What a step takes longer with one more decode."""
        rows = [self._row(self._step_s, clock, min(b, self.seats))[0] for b in (batch, batch + 1.0)]
        return max(float(rows[1] - rows[0]), 0.0)

    def watts(self, clock: int, batch: float, by_time: FloatArray) -> float:
        """Mean watts of steps weighted by the time they take: `by_time` (rows + 1,)."""
        return float(by_time @ self._row(self._step_w, clock, batch))


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """Traffic of the share `share` of all time, at `rate_factor` times the mean rate."""

    share: float
    rate_factor: float
    queue: InstanceQueue


class MixedQueue:
    """One engine under traffic whose rate and lengths move more slowly than queues do (minutes).

    Raises ValueError for shares that do not sum to 1 and factors whose mean is not 1.
    """

    def __init__(self, regimes: Sequence[Regime]) -> None:
        self._regimes = tuple(regimes)
        self._shares = np.array([r.share for r in regimes])
        self._factors = np.array([r.rate_factor for r in regimes])
        total, mean = float(self._shares.sum()), float(self._shares @ self._factors)
        if abs(total - 1.0) > 1e-6 or abs(mean - 1.0) > 1e-6:
            raise ValueError(f"shares must sum to 1 and factors average 1, got {total:g} and {mean:g}")
        self.model = regimes[0].queue.model

    def watts_at(self, rates_per_s: FloatArray, clock: int) -> FloatArray:
        """As of `InstanceQueue`, by the regimes' shares of time."""
        parts = [r.queue.watts_at(rates_per_s * r.rate_factor, clock) for r in self._regimes]
        return np.asarray(self._shares @ np.array(parts))

    def at(self, rate_per_s: float, clock: int) -> Operation:
        """Latencies mixed by what each regime serves, batch and watts by its time."""
        parts = [r.queue.at(rate_per_s * r.rate_factor, clock) for r in self._regimes]
        served = self._factors * self._shares
        return Operation(
            clock_mhz=self.model.clocks_mhz[clock],
            rate_per_s=rate_per_s,
            carries=all(p.carries for p in parts),
            batch=float(self._shares @ [p.batch for p in parts]),
            tbt_s=float(served @ [p.tbt_s for p in parts]),
            ttft=Latency.mixed([p.ttft for p in parts], served),
            tbt=Latency.mixed([p.tbt for p in parts], served),
            e2e=Latency.mixed([p.e2e for p in parts], served),
            itl=Latency.mixed([p.itl for p in parts], served),
            power_w=float(self._shares @ [p.power_w for p in parts]),
        )


def _prefilling(model: CompiledModel, demand: Demand) -> float:
    """Time that a request holds KV cache before it decodes, relative to that of decoding: about the same at
    every clock; taken at the top one."""
    loads = np.zeros(2), np.zeros(2), np.array([0.0, demand.prompts.mean])
    bare_s, prompt_s = model.step_time_s(*loads)[:, -1]
    return float(prompt_s / (demand.decode_steps * bare_s))


def _fits(shape: EngineShape, demand: Demand, prefilling: float) -> FloatArray:
    """Probability that so many decode: seats of the scheduler, and the KV cache less what prefills hold."""
    block = shape.block_size / 2.0
    held, share = demand.held_tokens
    # Until the next one leaves, those inside grow by as many tokens as an answer has: else one is preempted.
    coming = (demand.prompts.tokens + block + demand.decode_steps, demand.prompts.share)
    if float(coming[0].min()) > shape.kv_capacity_tokens:
        raise ValueError(f"no prompt fits the KV cache of {shape.kv_capacity_tokens} tokens")
    held = (held + block) * (1.0 + prefilling)
    return fitting(float(shape.kv_capacity_tokens), (held, share), coming, shape.max_num_seqs)


def _groups(size: BatchSize) -> tuple[FloatArray, FloatArray]:
    """Mean batch and probability of the groups between the quantiles GROUPS."""
    cumulative = np.append(0.0, np.cumsum(size.decoding))
    edges = np.clip(GROUPS, 0.0, 1.0)
    part = np.diff(np.clip(cumulative[None, :], edges[:-1, None], edges[1:, None]), axis=1)
    weight = part.sum(axis=1)
    batch = part @ np.arange(len(size.decoding)) / weight
    # Groups that coincide would make the interpolation between them undefined.
    return batch + 1e-6 * np.arange(len(batch)), weight


def _assembled(
    engine: InstanceQueue,
    rate_per_s: float,
    clock: int,
    size: BatchSize,
    batches: FloatArray,
    weights: FloatArray,
    queues: list[Solved],
    demand: Demand,
) -> Operation:
    firsts = [Latency.of(*solved.first_token()) for solved in queues]
    ttft = _with_seats(Latency.mixed(firsts, weights), firsts[-1], size)
    taus = np.array([solved.mean_step_s for solved in queues])
    power, gaps = [], []
    for batch, solved in zip(batches, queues, strict=True):
        by_time = solved.by_row * solved.queue.step_s
        power.append(engine.watts(clock, batch, by_time / by_time.sum()))
        gaps.append(Latency.of(solved.queue.step_s, solved.by_row))
    own_s = [engine.one_more_s(clock, batch) for batch in batches]
    tbt, e2e = _requests(firsts, queues, own_s, demand)
    decoding = weights * batches / max(float(weights @ batches), 1e-9)
    idle = float(size.share[0])
    idle_w = float(engine.model.idle_power_w()[clock])
    return Operation(
        clock_mhz=engine.model.clocks_mhz[clock],
        rate_per_s=rate_per_s,
        carries=True,
        batch=size.mean,
        tbt_s=float(weights @ taus),
        ttft=ttft,
        tbt=Latency.mixed(tbt, weights),
        e2e=Latency.mixed(e2e, weights),
        itl=Latency.mixed(gaps, decoding),
        power_w=(1.0 - idle) * float(weights @ power) + idle * idle_w,
    )


def _with_seats(ttft: Latency, behind: Latency, size: BatchSize) -> Latency:
    """Who finds no seat waits for one first, and then behind prompts beside a full batch."""
    wait_s, share = size.seat_wait()
    waits = float(share.sum())
    if waits < 1e-4:
        return ttft
    rest = np.array([behind.quantile(level) for level in SPREAD])
    late = Latency.of((wait_s[:, None] + rest).ravel(), np.repeat(share / len(rest), len(rest)))
    return Latency.mixed([ttft, late], np.array([1.0 - waits, waits]))


def _requests(
    firsts: list[Latency], queues: list[Solved], own_s: list[float], demand: Demand
) -> tuple[list[Latency], list[Latency]]:
    """TBT and E2E of requests beside each batch size."""
    tbt, e2e = [], []
    steps = np.maximum(demand.outputs.tokens - 1.0, 0.0)[:, None, None]
    for first, solved, own in zip(firsts, queues, own_s, strict=True):
        wait_s = np.array([first.quantile(level) for level in SPREAD])
        seconds, share = request_tbt(solved, wait_s, demand.outputs, own)
        several = share * (demand.outputs.tokens > 1.0)[:, None]  # one token has no time between tokens
        tbt.append(Latency.of(seconds.ravel(), several.ravel()))
        total = steps * seconds[:, :, None] + wait_s
        e2e.append(Latency.of(total.ravel(), np.repeat(share.ravel() / len(wait_s), len(wait_s))))
    return tbt, e2e


def capacity_table(
    queue: InstanceQueue | MixedQueue, slo: Slo, clocks: Sequence[int] | None = None, rates: int = 13
) -> CapacityTable:
    """Largest rate at each clock within `slo`, to about 2 %, and watts at `rates` rates up to the largest.

    `clocks`: MHz to look at, all of the model by default. Each clock's search starts from its neighbour's
    result, scaled by the clock.
    """
    known = queue.model.clocks_mhz
    columns = [known.index(clock) for clock in clocks] if clocks is not None else list(range(len(known)))
    limits, guess = np.zeros(len(columns)), 1.0
    for j, column in enumerate(columns):
        limits[j] = _largest_rate(queue, slo, column, guess)
        following = known[columns[min(j + 1, len(columns) - 1)]]
        guess = max(limits[j], 1e-2) * following / known[column]
    grid = np.linspace(0.0, max(float(limits.max()), 1e-3), rates)
    asked = np.minimum(grid[:, None], np.maximum(limits, 1e-6))
    watts = [queue.watts_at(asked[:, j], column) for j, column in enumerate(columns)]
    return CapacityTable(tuple(known[c] for c in columns), grid, np.stack(watts, axis=1), limits)


def _largest_rate(queue: InstanceQueue | MixedQueue, slo: Slo, clock: int, guess_per_s: float) -> float:
    """The rate up to which the promises hold: bracketed from a guess, then bisected."""
    low, high = 0.0, guess_per_s
    while high < 1e4 and queue.at(high, clock).keeps(slo):
        low, high = high, WIDER * high
    while low == 0.0:
        if high < 1e-3:
            return 0.0
        low = high / WIDER if queue.at(high / WIDER, clock).keeps(slo) else 0.0
        high = high if low else high / WIDER
    while high - low > CLOSE * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if queue.at(middle, clock).keeps(slo) else (low, middle)
    return low
