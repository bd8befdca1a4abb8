"""What one instance does at a rate and a clock: TTFT, TBT, E2E, batch and watts, at its fixed point.

Two chains share the step time. `queueing_batch_size`: how many requests decode, slow against a step.
`queueing_batch`: prompt tokens that wait, fast; solved at several batch sizes and mixed. Each needs the
other's result (steps lengthen with prompts, the room for prompts shrinks with decodes), which is the fixed
point of rate, batch and clock. docs/instances-model.md has the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel
from kvwatt.queueing_batch import Solved, StepQueue
from kvwatt.queueing_batch_size import BatchSize, batch_size, fitting
from kvwatt.queueing_demand import NEVER, Demand, Latency
from kvwatt.queueing_pace import request_tbt
from kvwatt.state import EngineShape, Slo

FloatArray = npt.NDArray[np.float64]

HORIZON_S = 8.0  # longest wait for prompts that is told from longer ones
LEAST_ROWS, MOST_ROWS, BINS = 6, 16, 256
NODES = 14  # batch sizes at which the model is asked
GROUPS = np.array([0.0, 0.3, 0.6, 0.85, 0.96, 1.0])  # of batch sizes: a prompt queue is solved for each
RELAXATIONS = 2
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
