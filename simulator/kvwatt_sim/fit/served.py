"""What clients and scheduler see of an engine that serves a list of requests, simulated or real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.state import EngineShape
from kvwatt_sim import gpu
from kvwatt_sim.engine import Engine, EventKind, Request
from kvwatt_sim.fit.measured import CLOCK_MHZ
from kvwatt_sim.gpu import Plant
from kvwatt_sim.traces import TraceRequest

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds of the server around its engine: from sending to the step, from its end to the client."""

    to_engine_s: float = 0.0
    to_client_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Observed:
    """One run. Requests in the order of their list; NaN where one has no such time.

    `steps`: rows of start, end, batch, KV blocks in use; times since the run's start. `gaps_s`: between
    all tokens of all requests, in no order.
    """

    ttft_s: Floats
    e2e_s: Floats
    tbt_s: Floats  # a request's mean time between tokens
    gaps_s: Floats
    steps: Floats

    def at(self, times_s: Floats) -> tuple[Floats, Floats]:
        """Batch and KV blocks of the step in progress at each time; zero between steps."""
        where = np.searchsorted(self.steps[:, 0], times_s, side="right") - 1
        inside = (where >= 0) & (times_s < self.steps[np.maximum(where, 0), 1])
        batch, blocks = self.steps[np.maximum(where, 0), 2], self.steps[np.maximum(where, 0), 3]
        return np.where(inside, batch, 0.0), np.where(inside, blocks, 0.0)


def simulate(plant: Plant, shape: EngineShape, requests: Sequence[TraceRequest], delays: Delays) -> Observed:
    """The simulated engine in virtual time, every step as long as the plant's law says."""
    engine = Engine(shape)
    arrival_s = [r.arrival_s + delays.to_engine_s for r in requests]
    tokens_s: list[list[float]] = [[] for _ in requests]
    steps, now_s, following = [], 0.0, 0
    while True:
        while following < len(requests) and arrival_s[following] <= now_s:
            r = requests[following]
            engine.add(Request(str(following), arrival_s[following], r.prompt_tokens, r.output_tokens))
            following += 1
        plan = engine.schedule(now_s)
        if plan is None:
            if following == len(requests):
                break
            now_s = arrival_s[following]
            continue
        work = (plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, plan.prefill_context_tokens)
        end_s = now_s + gpu.step_time_s(plant, CLOCK_MHZ, *work)
        steps.append((now_s, end_s, engine.running, engine.kv_used_blocks))
        now_s = end_s
        for event in engine.complete(plan, now_s):
            if event.kind is not EventKind.FINISHED:
                tokens_s[int(event.request_id)].append(event.t_s + delays.to_client_s)
    return observed([r.arrival_s for r in requests], tokens_s, np.array(steps, dtype=np.float64))


def observed(arrival_s: Sequence[float], tokens_s: Sequence[Sequence[float]], steps: Floats) -> Observed:
    """A run from the times at which each request's tokens came."""
    first = np.array([t[0] if t else np.nan for t in tokens_s])
    last = np.array([t[-1] if t else np.nan for t in tokens_s])
    count = np.array([len(t) for t in tokens_s], dtype=np.float64)
    mean = np.where(count > 1, (last - first) / np.maximum(count - 1, 1), np.nan)
    gaps = np.concatenate([np.diff(t) for t in tokens_s]) if tokens_s else np.zeros(0)
    arrived = np.asarray(arrival_s, dtype=np.float64)
    return Observed(first - arrived, last - arrived, mean, gaps, steps.reshape(-1, 4))
