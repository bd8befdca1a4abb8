"""What the scheduler of one engine is told: lengths from the survival model, the KV budget, promises."""

from __future__ import annotations

import numpy as np

from kvwatt.compiled import CompiledModel
from kvwatt.kv_budget import KvBudget, KvLoad, Reuse, kv_budget
from kvwatt.length_classes import ClassLengths, Requests
from kvwatt.length_curves import Floats
from kvwatt.state import EngineShape, Slo
from kvwatt.traffic import Traffic
from kvwattd.vllm_plugin.told import Lengths, Promises, StepCost

PROMPT_EDGES = (64, 256, 1024, 4096)  # classes of prompts, and one above
LEVELS = np.arange(1, 64) / 64
FEWEST_FINISHED = 32
LONGEST = 1 << 30
ROUNDS = 16
NOTHING_COMES_BACK = Reuse(0.0, (0.0, 0.0))


def lengths_of(lengths: ClassLengths) -> list[Lengths]:
    """Quantiles of the output length by class of prompt; nothing before enough requests finished."""
    if lengths.finished < FEWEST_FINISHED:
        return []
    edges = (16, *PROMPT_EDGES, 4 * PROMPT_EDGES[-1])
    middles = np.sqrt(np.array(edges[:-1], dtype=np.float64) * np.array(edges[1:]))
    fresh = Requests.known(middles, np.zeros(len(middles)))
    table = np.array([lengths.remaining_quantile(fresh, float(level)) for level in LEVELS])
    table = np.maximum.accumulate(np.clip(np.ceil(table), 1, LONGEST), axis=0).astype(int)
    below: list[int | None] = [*PROMPT_EDGES, None]
    return [Lengths(column.tolist(), edge) for column, edge in zip(table.T, below, strict=True)]


class AtClock:
    """A compiled model at one of its clocks, as the energy model's functions want it."""

    def __init__(self, compiled: CompiledModel, clock_mhz: float | None) -> None:
        self._compiled = compiled
        clocks = compiled.clocks_mhz
        self.clock_mhz = float(clocks[-1] if clock_mhz is None else clock_mhz)
        self._column = int(np.argmin(np.abs(np.array(clocks) - self.clock_mhz)))

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        return np.asarray(self._compiled.step_time_s(batch, kv, prefill)[:, self._column])

    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        return np.asarray(self._compiled.power_w(batch, kv, prefill)[:, self._column])

    def idle_power_w(self, clock_mhz: Floats, /) -> Floats:
        return np.asarray(self._compiled.idle_power_w()[self._column : self._column + 1])

    def step_s(self, batch: float, kv: float, prefill: float = 0.0) -> float:
        """Of one load."""
        one = np.ones(1)
        return float(self.step_time_s(one, batch * one, kv * one, prefill * one)[0])


def load_of(traffic: Traffic, step: AtClock, shape: EngineShape) -> KvLoad | None:
    """The load that the budget is for; None where the rate or the lengths are not known yet.

    How long a request stays is Little's fixed point of the batch and its step time at this clock.
    """
    prompt, output = traffic.prompt_mean_tokens, traffic.output_mean_tokens
    rate, upper = traffic.arrival_per_s, traffic.arrival_upper_per_s
    if not (0.0 < rate <= upper < np.inf and prompt < np.inf and 0.0 < output < np.inf):
        return None
    context, inside, stays_s = prompt + output / 2, 1.0, 0.0
    for _ in range(ROUNDS):
        stays_s = output * step.step_s(inside, inside * context) + step.step_s(
            inside, inside * context, prompt
        )
        inside = min(max((inside + upper * stays_s) / 2, 1.0), float(shape.max_num_seqs))
    high = traffic.output_high_tokens
    largest = float(traffic.prompt_quantiles_tokens[-1]) + (high if high < np.inf else 3.0 * output)
    return KvLoad(rate, upper, prompt, output, stays_s, context, largest)


def budget_of(
    traffic: Traffic, compiled: CompiledModel, clock_mhz: float | None, shape: EngineShape, slo: Slo
) -> KvBudget | None:
    """Blocks and sequences that may be in use, None while unknown. What comes back does not move it."""
    step = AtClock(compiled, clock_mhz)
    load = load_of(traffic, step, shape)
    if load is None:
        return None
    limit_s = slo.tbt.limit_s if slo.tbt is not None else None
    return kv_budget(load, shape, NOTHING_COMES_BACK, step, step.clock_mhz, 0.0, limit_s)


def promises_of(compiled: CompiledModel, shape: EngineShape, slo: Slo) -> Promises | None:
    """Limits and the price of a step at the top clock, by differences around half of a full engine."""
    if slo.tbt is None and slo.e2e is None:
        return None
    step = AtClock(compiled, None)
    batch, kv = max(shape.max_num_seqs / 2, 2.0), shape.num_blocks * shape.block_size / 2
    middle_s = step.step_s(batch, kv)
    request_s = max(middle_s - step.step_s(batch / 2, kv), 0.0) / (batch / 2)
    token_s = max(middle_s - step.step_s(batch, kv / 2), 0.0) / (kv / 2)
    prompt_s = max(step.step_s(batch, kv, 512.0) - middle_s, 0.0) / 512.0
    base_s = max(middle_s - request_s * batch - token_s * kv, 1e-6)
    return Promises(
        StepCost(base_s, request_s, token_s, prompt_s),
        slo.tbt.limit_s if slo.tbt is not None else None,
        slo.e2e.limit_s if slo.e2e is not None else None,
    )
