"""Serving traffic with shared prefixes in virtual time: energy, latencies, hits, under a policy.

The engine is the step-by-step one of `prefix.engine` on the card's laws; a policy is asked every `PERIOD_S`
and may set the clock and the KV budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import numpy as np

from kvwatt.state import EngineShape, Slo
from kvwatt_sim import gpu
from kvwatt_sim.cards import Card
from kvwatt_sim.engine import Request, RequestRecord
from kvwatt_sim.engine.types import StepPlan
from kvwatt_sim.prefix.engine import PrefixEngine
from kvwatt_sim.traces import TraceRequest

PERIOD_S = 1.0


class HashedRequest(Protocol):
    """What both kinds of traffic are: a request, and the hash of its n-th block."""

    @property
    def request(self) -> TraceRequest: ...
    def hashes(self, block_size: int) -> Callable[[int], int]: ...


class Policy(Protocol):
    """Sets `engine.admit_blocks`, `engine.admit_seqs`, `engine.cache.limit`; returns the clock to hold."""

    def act(self, now_s: float, engine: PrefixEngine, arrivals: int) -> int: ...


@dataclass
class Result:
    """One run. Energy is that of all GPUs of the engine over `duration_s`, idle included."""

    energy_j: float = 0.0
    duration_s: float = 0.0
    prefill_tokens: int = 0
    hit_tokens: int = 0
    asked_tokens: int = 0
    preemptions: int = 0
    busy_s: float = 0.0
    records: list[RequestRecord] = field(default_factory=list)

    @property
    def hit_ratio(self) -> float:
        """Of prompt tokens."""
        return self.hit_tokens / max(self.asked_tokens, 1)

    @property
    def output_tokens(self) -> int:
        return sum(record.output_tokens for record in self.records)

    def latencies(self) -> dict[str, np.ndarray]:
        """TTFT, mean TBT (of two tokens or more) and E2E, seconds per request."""
        done = [
            (r.request.arrival_s, r.first_token_s, r.last_token_s, r.output_tokens)
            for r in self.records
            if r.first_token_s is not None and r.last_token_s is not None
        ]
        table = np.array(done, dtype=np.float64).reshape(-1, 4)
        arrival, first, last, tokens = table.T
        several = tokens > 1
        tbt = (last - first)[several] / (tokens[several] - 1)
        return {"ttft": first - arrival, "tbt": tbt, "e2e": last - arrival}

    def kept(self, slo: Slo) -> float:
        """The share kept of the promise that was kept least."""
        found = self.latencies()
        targets = {"ttft": slo.ttft, "tbt": slo.tbt, "e2e": slo.e2e}
        shares = [float(np.mean(found[k] <= t.limit_s)) for k, t in targets.items() if t and len(found[k])]
        return min(shares, default=1.0)


class Serving:
    """One engine on its card, moved on in virtual time. Set `clock` and the engine's budget between moves."""

    def __init__(self, card: Card, shape: EngineShape) -> None:
        self.card, self.engine, self.result = card, PrefixEngine(shape), Result()
        self.now_s, self.clock = 0.0, card.boost_mhz
        self._coming: deque[tuple[int, HashedRequest]] = deque()
        self._idle_w = {mhz: card.tp * gpu.power_w(card, mhz, 0.0, 0.0) for mhz in card.supported_mhz}

    @property
    def inside(self) -> int:
        """Requests that it has and has not finished."""
        return len(self._coming) + self.engine.running + self.engine.waiting

    def send(self, number: int, item: HashedRequest) -> None:
        """A request that arrives at its time. Call in order of arrival."""
        self._coming.append((number, item))

    def move(self, until_s: float) -> None:
        """Serve until then; a step that has begun is finished, and energy counted to its end."""
        while self.now_s < until_s:
            while self._coming and self._coming[0][1].request.arrival_s <= self.now_s:
                _add(self.engine, *self._coming.popleft())
            plan = self.engine.schedule(self.now_s)
            if plan is None:
                next_s = self._coming[0][1].request.arrival_s if self._coming else inf
                self.idle(min(until_s, next_s), self._idle_w[self.clock])
            else:
                self._step(plan)

    def idle(self, until_s: float, watts: float) -> None:
        """Pass time without work."""
        self.result.energy_j += max(until_s - self.now_s, 0.0) * watts
        self.now_s = max(self.now_s, until_s)

    def _step(self, plan: StepPlan) -> None:
        card, result = self.card, self.result
        load = (plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, plan.prefill_context_tokens)
        step = gpu.step(card, self.clock, *load)
        actual = gpu.capped_clock_mhz(card, self.clock, step.compute, step.memory)
        step = step if actual == self.clock else gpu.step(card, actual, *load)
        self.now_s += step.time_s
        result.busy_s += step.time_s
        result.energy_j += card.tp * step.time_s * gpu.power_w(card, actual, step.compute, step.memory)
        result.prefill_tokens += plan.prefill_tokens
        result.records += [event.record for event in self.engine.complete(plan, self.now_s) if event.record]

    def ended(self) -> Result:
        """The result so far."""
        engine, result = self.engine, self.result
        result.duration_s = self.now_s
        result.hit_tokens, result.asked_tokens = engine.hit_tokens, engine.asked_tokens
        result.preemptions = engine.counters.preemptions
        return result


def serve(
    card: Card, shape: EngineShape, traffic: Sequence[HashedRequest], policy: Policy, until_s: float
) -> Result:
    """Serve until `until_s` is over and everybody has finished."""
    serving, coming, arrivals = Serving(card, shape), deque(enumerate(traffic)), 0
    while serving.now_s < until_s or coming or serving.inside:
        serving.clock = policy.act(serving.now_s, serving.engine, arrivals)
        next_s, arrivals = serving.now_s + PERIOD_S, 0
        while coming and coming[0][1].request.arrival_s <= next_s:
            serving.send(*coming.popleft())
            arrivals += 1
        serving.move(next_s)
    return serving.ended()


def _add(engine: PrefixEngine, number: int, item: HashedRequest) -> None:
    told = item.request
    request = Request(f"r{number}", told.arrival_s, told.prompt_tokens, told.output_tokens)
    engine.add_hashed(request, item.hashes(engine.shape.block_size))
