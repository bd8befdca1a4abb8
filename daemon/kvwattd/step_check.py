"""The step-time model against what the engine does: single steps from the tap, else means over polls.

Three layers. Single steps correct the model by load (pace.py), as far as their load is known for certain.
What is left over seconds is the bias, with a bound (calibration.py). And where both together say that the
model was made for another engine, or it changes faster than they follow, it is not to be relied on at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvwatt.calibration import RegimeCalibration
from kvwatt.compiled import CompiledModel
from kvwatt.operating import Factors
from kvwatt.pace import PaceCorrection
from kvwatt.policy import Bounds
from kvwatt.residual import MIN_ITERATIONS, expected_itl_s, expected_steps_s
from kvwatt.state import EngineSnapshot
from kvwatt.traffic import Interval, kv_capacity_tokens
from kvwattd.tap_stream import TapStep

SPAN_S = 2.0
MOST_OFF = 1.6  # either way: a model further off was made for another engine


@dataclass
class Span:
    """Token-weighted inter-token latency over several intervals, expected and measured.

    Within one poll a page may count a prefill that ran in the poll before; over a few seconds that
    evens out, and what is left is the model's error.
    """

    duration_s: float = 0.0
    prompts: bool = False  # computed in any of the intervals
    _expected_sum_s: float = 0.0
    _measured_sum_s: float = 0.0
    _tokens: float = 0.0

    def add(self, expected_sum_s: float, measured_sum_s: float, tokens: float, dt_s: float) -> None:
        self._expected_sum_s += expected_sum_s
        self._measured_sum_s += measured_sum_s
        self._tokens += tokens
        self.duration_s += dt_s

    @property
    def expected_s(self) -> float:
        return self._expected_sum_s / self._tokens

    @property
    def measured_s(self) -> float:
        return self._measured_sum_s / self._tokens


class StepCheck:
    """Feed `interval`; read `paced` and `bounds`. For one engine run and one model."""

    def __init__(self, max_num_batched_tokens: float) -> None:
        self._chunk_tokens = max_num_batched_tokens
        self.calibration = RegimeCalibration()
        self.pace = PaceCorrection()
        self.predicted_itl_s: float | None = None
        self.measured_itl_s: float | None = None
        self._span = Span()
        self._paced: tuple[CompiledModel, CompiledModel] | None = None
        self._bounds: tuple[tuple[float, ...], Bounds] | None = None

    def interval(
        self,
        model: CompiledModel,
        page: EngineSnapshot,
        step: Interval,
        steps: Sequence[TapStep],
        clock_mhz: int,
        chunk_tokens: float,
    ) -> None:
        """Compare the interval that ends with `page`, served at `clock_mhz`, with the model.

        `steps`: its steps one by one, where the tap is relied on; too few say nothing. `chunk_tokens`: how
        many tokens of a prompt are taken to be computed in one step, where they are not told.
        """
        if 0 < len(steps) < MIN_ITERATIONS:
            return
        paced = self.paced(model)
        if steps:
            kv_tokens = kv_capacity_tokens(page)
            self._add_steps(paced, steps, kv_tokens, clock_mhz, step.dt_s)
            self._learn_pace(model, [s for s in steps if s.exact], kv_tokens, clock_mhz)
        else:
            expected_s = expected_itl_s(paced, step, clock_mhz, chunk_tokens)
            if expected_s is None:
                return
            self._span.add(expected_s * step.itl_count, step.itl_sum_s, step.itl_count, step.dt_s)
        self._span.prompts = self._span.prompts or step.prompt_tokens > 0
        if self._span.duration_s >= SPAN_S:
            self._close(page.observed_s)

    def _close(self, now_s: float) -> None:
        span, self._span = self._span, Span()
        self.predicted_itl_s, self.measured_itl_s = span.expected_s, span.measured_s
        regime = "mixed" if span.prompts else "decode"
        self.calibration.update(span.expected_s, span.measured_s, now_s, regime)

    def _add_steps(
        self, model: CompiledModel, steps: Sequence[TapStep], kv_tokens: float, clock_mhz: int, dt_s: float
    ) -> None:
        """Every step on its own, with the load it really had."""
        table = np.array([(s.step_s, s.decodes, s.prompt_tokens, s.kv_usage) for s in steps]).T
        measured_s, decodes, prompts, usage = table
        expected_s = expected_steps_s(
            model, decodes, usage * kv_tokens, prompts, clock_mhz, self._chunk_tokens
        )
        self._span.add(float(expected_s @ decodes), float(measured_s @ decodes), float(decodes.sum()), dt_s)

    def _learn_pace(
        self, model: CompiledModel, steps: Sequence[TapStep], kv_tokens: float, clock_mhz: int
    ) -> None:
        """Where the model is off by load."""
        if not steps:
            return
        table = np.array([(s.step_s, s.decodes, s.prompt_tokens, s.kv_usage) for s in steps]).T
        measured_s, decodes, prompts, usage = table
        expected_s = expected_steps_s(
            model, decodes, usage * kv_tokens, prompts, clock_mhz, self._chunk_tokens
        )
        self.pace.update(decodes, prompts, expected_s, measured_s)
        self._paced = None

    def paced(self, model: CompiledModel) -> CompiledModel:
        """The model corrected by what single steps took: the same object while nothing was learned."""
        if self.pace.steps == 0:
            return model
        if self._paced is None or self._paced[0] is not model:
            self._paced = (model, self.pace.paced(model))
        return self._paced[1]

    def bounds(self, model: CompiledModel) -> Bounds:
        """Corrections to the step times of `paced`; the same object while nothing was learned."""
        c = self.calibration
        key = (c.samples, self.pace.steps, model.upper_factor)
        if self._bounds is None or self._bounds[0] != key:
            typical = c.bias * model.upper_factor
            upper = c.bias * max(c.upper_factor, model.upper_factor)
            off = c.bias * self.pace.overall
            drifted = c.drifted or not 1.0 / MOST_OFF < off < MOST_OFF
            self._bounds = (key, Bounds(Factors(typical, upper), drifted))
        return self._bounds[1]
