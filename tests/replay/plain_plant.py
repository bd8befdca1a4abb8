"""The virtual plant written the slow, obvious way, around the engine and the laws of the real-time server.

The compiled one must agree with it in every time, every count and every joule.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from kvwatt.state import EngineShape, Histogram
from kvwatt_sim.cards import Card
from kvwatt_sim.engine import Engine, EventKind, Request, RequestRecord, StepPlan
from kvwatt_sim.gpu import capped_clock_mhz, power_w, step
from kvwatt_sim.replay.gaps import BINS, Gaps, bin_of
from kvwatt_sim.replay.meter import E2E_S, LENGTH_TOKENS, STEP_TOKENS, TBT_S, TTFT_S, histogram
from kvwatt_sim.replay.plant import MAX_TOKENS, Sequences
from kvwatt_sim.traces import TraceRequest


class Meter:
    """One growing histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0.0] * len(bounds)
        self._sum = 0.0

    def observe(self, value: float, times: float = 1.0) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def histogram(self) -> Histogram:
        return histogram(self._bounds, np.array(self._counts), self._sum)


@dataclass
class Meters:
    """What the page's histograms hold."""

    ttft: Meter = field(default_factory=lambda: Meter(TTFT_S))
    tbt: Meter = field(default_factory=lambda: Meter(TBT_S))
    itl: Meter = field(default_factory=lambda: Meter(TBT_S))
    e2e: Meter = field(default_factory=lambda: Meter(E2E_S))
    prompts: Meter = field(default_factory=lambda: Meter(LENGTH_TOKENS))
    outputs: Meter = field(default_factory=lambda: Meter(LENGTH_TOKENS))
    iterations: Meter = field(default_factory=lambda: Meter(STEP_TOKENS))


class PlainPlant:
    """Engine and GPU driven to any later moment by `advance`; `energy_j` is the integral of power."""

    def __init__(self, card: Card, shape: EngineShape, requests: Sequence[TraceRequest]) -> None:
        self.card = card
        self.engine = Engine(shape, token_events=False)
        self.records: list[RequestRecord] = []
        self.now_s = 0.0
        self.energy_j = 0.0
        self._requests = requests
        self._next = 0
        self._meters = Meters()
        self._clock_mhz = card.boost_mhz
        self._pending: tuple[float, int] | None = None
        self._plan: StepPlan | None = None
        self._left = 1.0  # share of the step in progress that is still to do
        self._power_w = 0.0
        self._actual_mhz = card.boost_mhz
        self._gaps = np.zeros(BINS, dtype=np.int64)

    def set_clock(self, clock_mhz: int | None, latency_s: float) -> None:
        """Lock the clock (None: driver default); it takes effect `latency_s` later."""
        self._pending = (self.now_s + latency_s, clock_mhz if clock_mhz is not None else self.card.boost_mhz)

    def hold_arrivals(self, hold: bool = True) -> None:
        """Who arrives waits until it is released."""
        self.engine.hold_arrivals = hold

    @property
    def shape(self) -> EngineShape:
        """The engine's."""
        return self.engine.shape

    def seat(self, rule: Callable[[PlainPlant], int]) -> None:
        """`rule` says before each step in which somebody waits how many may run."""
        self.engine.seats = lambda: rule(self)

    def sequences(self) -> Sequences:
        """Everyone inside."""
        places = [int(request.request_id[1:]) for request, _ in self.engine.requests()]
        states = [state for _, state in self.engine.requests()]
        prompts, outputs = [s.prompt_tokens for s in states], [s.output_tokens for s in states]
        return Sequences(self.engine.running, places, prompts, outputs)

    def finished_outputs(self, since: int) -> list[int]:
        """Output tokens of those that finished."""
        return [record.output_tokens for record in self.records[since:]]

    def release(self, place: int) -> None:
        """Admit the request at this place of the trace."""
        self.engine.release(f"r{place}")

    def cap_admission(self, blocks: int | None) -> None:
        """Admit only what leaves at most so many blocks in use."""
        self.engine.admit_blocks = blocks

    def queue(self) -> tuple[int, ...]:
        """Places of those that wait."""
        return tuple(int(r.request_id[1:]) for r, _ in self.engine.requests()[self.engine.running :])

    @property
    def done(self) -> bool:
        """Every request has arrived and finished."""
        return self._next >= len(self._requests) and self.engine.running + self.engine.waiting == 0

    def advance(self, until_s: float) -> None:
        """Run until `until_s`. A clock change takes effect in the middle of a step, as on a real GPU."""
        while self.now_s < until_s - 1e-12:
            self._switch()
            if self._plan is None:
                self._arrive()
                self._plan, self._left = self.engine.schedule(self.now_s), 1.0
            if self._plan is None:
                self._idle(until_s)
            else:
                self._run(self._plan, until_s)

    def _switch(self) -> None:
        if self._pending is not None and self.now_s >= self._pending[0]:
            self._clock_mhz = self._pending[1]
            self._pending = None

    def _arrive(self) -> None:
        while self._next < len(self._requests) and self._requests[self._next].arrival_s <= self.now_s:
            r = self._requests[self._next]
            request = Request(f"r{self._next}", r.arrival_s, r.prompt_tokens, r.output_tokens, MAX_TOKENS)
            self.engine.add(request)
            self._next += 1

    def _until_switch(self, until_s: float) -> float:
        return until_s if self._pending is None else min(until_s, max(self._pending[0], self.now_s + 1e-9))

    def _idle(self, until_s: float) -> None:
        following = self._requests[self._next].arrival_s if self._next < len(self._requests) else until_s
        wake_s = self._until_switch(min(until_s, following))
        self._spend(max(wake_s - self.now_s, 1e-9), self._clock_mhz, 0.0, 0.0)

    def _run(self, plan: StepPlan, until_s: float) -> None:
        """Go on with the step in progress until it ends, `until_s`, or the next clock change."""
        load = (plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, plan.prefill_context_tokens)
        at = step(self.card, self._clock_mhz, *load)
        clock = capped_clock_mhz(self.card, self._clock_mhz, at.compute, at.memory)
        if clock != self._clock_mhz:
            at = step(self.card, clock, *load)
        dt_s = min(self._left * at.time_s, self._until_switch(until_s) - self.now_s)
        self._spend(dt_s, clock, at.compute, at.memory)
        self._left -= dt_s / at.time_s
        if self._left <= 1e-9:
            self._plan = None
            self._complete(plan)

    def _complete(self, plan: StepPlan) -> None:
        if plan.decode_batch:
            gap_s = self.now_s - plan.start_s
            self._meters.itl.observe(gap_s, plan.decode_batch)
            self._gaps[bin_of(gap_s)] += plan.decode_batch
        self._meters.iterations.observe(plan.scheduled_tokens)
        for event in self.engine.complete(plan, self.now_s):
            if event.kind is EventKind.FIRST:
                arrival_s = self._requests[int(event.request_id[1:])].arrival_s
                self._meters.ttft.observe(event.t_s - arrival_s)
            if event.record is not None:
                self._finished(event.record)

    def _spend(self, dt_s: float, clock_mhz: int, compute: float, memory: float) -> None:
        self._power_w = power_w(self.card, clock_mhz, compute, memory) * self.card.tp
        self._actual_mhz = clock_mhz
        self.energy_j += self._power_w * dt_s
        self.now_s += dt_s

    def _finished(self, record: RequestRecord) -> None:
        self.records.append(record)
        m, request = self._meters, record.request
        m.e2e.observe(record.finished_s - request.arrival_s)
        m.prompts.observe(request.prompt_tokens)
        m.outputs.observe(record.output_tokens)
        if record.first_token_s is not None and record.last_token_s is not None and record.output_tokens > 1:
            m.tbt.observe((record.last_token_s - record.first_token_s) / (record.output_tokens - 1))

    def histograms(self) -> dict[str, Histogram]:
        """What the page's histograms hold."""
        return {item.name: getattr(self._meters, item.name).histogram() for item in fields(self._meters)}

    @property
    def gaps(self) -> Gaps:
        """Every time between two tokens."""
        return Gaps(self._gaps)
