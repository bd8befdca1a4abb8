"""Serving traffic with shared prefixes in virtual time: energy, latencies, hits, under a policy.

The engine is the step-by-step one of `prefix.engine` on the card's laws; a policy is asked every `PERIOD_S`
and may set the clock and the KV budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import numpy as np

from kvwatt.state import EngineShape, Slo
from kvwatt_sim import gpu
from kvwatt_sim.cards import Card
from kvwatt_sim.engine import Request, RequestRecord
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


def serve(
    card: Card, shape: EngineShape, traffic: Sequence[HashedRequest], policy: Policy, until_s: float
) -> Result:
    """Serve until `until_s` is over and everybody has finished."""
    engine, result = PrefixEngine(shape), Result()
    coming = list(enumerate(traffic))[::-1]
    now_s, next_s, arrivals, clock = 0.0, 0.0, 0, card.boost_mhz
    idle_w = {mhz: card.tp * gpu.power_w(card, mhz, 0.0, 0.0) for mhz in card.supported_mhz}
    while now_s < until_s or coming or engine.running or engine.waiting:
        while coming and coming[-1][1].request.arrival_s <= now_s:
            number, item = coming.pop()
            _add(engine, number, item)
            arrivals += 1
        if now_s >= next_s:
            clock, arrivals = policy.act(now_s, engine, arrivals), 0
            next_s = now_s + PERIOD_S
        plan = engine.schedule(now_s)
        if plan is None:
            later_s = min(next_s, coming[-1][1].request.arrival_s if coming else inf)
            result.energy_j += (later_s - now_s) * idle_w[clock]
            now_s = later_s
            continue
        load = (plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, plan.prefill_context_tokens)
        step = gpu.step(card, clock, *load)
        actual = gpu.capped_clock_mhz(card, clock, step.compute, step.memory)
        step = step if actual == clock else gpu.step(card, actual, *load)
        now_s += step.time_s
        result.busy_s += step.time_s
        result.energy_j += card.tp * step.time_s * gpu.power_w(card, actual, step.compute, step.memory)
        result.prefill_tokens += plan.prefill_tokens
        result.records += [event.record for event in engine.complete(plan, now_s) if event.record]
    result.duration_s = now_s
    result.hit_tokens, result.asked_tokens = engine.hit_tokens, engine.asked_tokens
    result.preemptions = engine.counters.preemptions
    return result


def _add(engine: PrefixEngine, number: int, item: HashedRequest) -> None:
    told = item.request
    request = Request(f"r{number}", told.arrival_s, told.prompt_tokens, told.output_tokens)
    engine.add_hashed(request, item.hashes(engine.shape.block_size))
