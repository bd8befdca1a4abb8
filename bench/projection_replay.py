"""An engine in virtual time on the simulated L20's laws, and what it did. Part of bench/projection.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvwatt.length_classes import FinishedRequest
from kvwatt_sim.cards import load
from kvwatt_sim.engine import Engine
from kvwatt_sim.gpu import capped_clock_mhz, step

CARD = load("l20")
SHAPE = CARD.engine_shape()
CLOCK_MHZ = CARD.boost_mhz
MAX_TOKENS = 2048
HORIZON_S, SAMPLE_S = 5.0, 0.1
TIMES = np.arange(1, int(HORIZON_S / SAMPLE_S) + 1) * SAMPLE_S - SAMPLE_S / 2

Floats = npt.NDArray[np.float64]
Trajectory = tuple[Floats, Floats]  # batch and KV tokens (whole blocks) at TIMES


@dataclass
class Run:
    """`log`: end of each step, batch and KV tokens during it. `steps`: load and seconds of each."""

    engine: Engine
    now_s: float = 0.0
    log: list[tuple[float, int, int]] = field(default_factory=list)
    steps: list[tuple[int, int, int, float]] = field(default_factory=list)

    def one_step(self) -> list[tuple[str, FinishedRequest]] | None:
        """What finished with it; None when there is nothing to run."""
        plan = self.engine.schedule(self.now_s)
        if plan is None:
            return None
        work = (plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, plan.prefill_context_tokens)
        at = step(CARD, CLOCK_MHZ, *work)
        clock = capped_clock_mhz(CARD, CLOCK_MHZ, at.compute, at.memory)
        took_s = at.time_s if clock == CLOCK_MHZ else step(CARD, clock, *work).time_s
        self.now_s += took_s
        self.log.append((self.now_s, self.engine.running, self.engine.kv_used_blocks * SHAPE.block_size))
        self.steps.append((plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, took_s))
        records = [event.record for event in self.engine.complete(plan, self.now_s) if event.record]
        return [
            (r.request.request_id, FinishedRequest(r.request.prompt_tokens, r.output_tokens, MAX_TOKENS))
            for r in records
        ]


def at_times(log: Sequence[tuple[float, int, int]], from_s: float) -> Trajectory:
    """Batch and KV of the step in progress at each of TIMES after `from_s`; zero once nothing runs."""
    rows = np.array([*log, (np.inf, 0, 0)], dtype=np.float64)
    where = np.searchsorted(rows[:, 0], from_s + TIMES, side="right")
    return rows[where, 1], rows[where, 2]


@dataclass
class Errors:
    """Relative errors of batch and KV by decision, and how often an upper bound held."""

    batch: list[Floats] = field(default_factory=list)
    kv: list[Floats] = field(default_factory=list)
    held: list[Floats] = field(default_factory=list)

    def add(self, projected: Trajectory, actual: Trajectory, upper: Trajectory | None = None) -> None:
        some = actual[0] > 0
        self.batch.append(np.abs(projected[0] - actual[0])[some] / actual[0][some])
        self.kv.append(np.abs(projected[1] - actual[1])[some] / actual[1][some])
        if upper is not None:
            # A batch is a whole number: the bound is on the next one up.
            self.held.append(np.array([actual[0] <= np.ceil(upper[0]), actual[1] <= upper[1]]).mean(axis=1))

    @property
    def percent(self) -> tuple[float, float]:
        """Mean relative error of batch and of KV."""
        return _percent(self.batch), _percent(self.kv)

    @property
    def coverage(self) -> tuple[float, float] | None:
        """Share of moments at which batch and KV lay within their upper bounds."""
        if not self.held:
            return None
        batch, kv = np.mean(self.held, axis=0)
        return float(batch), float(kv)


def _percent(errors: list[Floats]) -> float:
    return 100.0 * float(np.concatenate(errors).mean())
