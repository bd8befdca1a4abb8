"""What shadow mode would have saved and cost so far, of one instance. Estimates of the model, all of it."""

from __future__ import annotations

from collections.abc import Mapping

from kvwatt.attainment import WINDOW_S, Attained, Attainment, Tally
from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape, EngineSnapshot, EngineState, Metric, Slo
from kvwatt.traffic import Traffic
from kvwattd.promises import Judged
from kvwattd.savings import Savings
from kvwattd.shadow.engine import ShadowEngine
from kvwattd.shadow.pace import NO_PACE, Pace, pace_of

# How far the saving in shadow mode lies off what control then saves, as a share of the baseline: what a model
# without any error would leave. About the mean distance on the seeds that it was set on (bench/shadow.py).
TRANSFER_RATIO = 0.02
NORMAL_95 = 1.96
MEAN_TO_SD = 1.2533  # of a normal error: its standard deviation over its mean size


class Shadow:
    """Feed pages and readings while shadow mode decides; decisions are made on `state` and `budget`."""

    def __init__(self) -> None:
        self.engine = ShadowEngine()
        self.savings = Savings()
        self.kept: dict[Metric, Attained] = {}
        self._window = Attainment(WINDOW_S)
        self._slo: Slo | None = None
        self._pace = NO_PACE

    def restart(self) -> None:
        """Another regime, or another engine run: nobody is inside who would not be."""
        self.engine.restart()
        self._pace = NO_PACE

    def on_page(
        self,
        page: EngineSnapshot,
        slo: Slo,
        judged: Judged | None,
        told: EngineState | None,
        model: tuple[CompiledModel | None, EngineShape | None, Traffic | None],
        clock_mhz: int | None,
    ) -> None:
        """A page under the decision for `clock_mhz`; `told`: the engine as it is."""
        self._pace = self._paced(told, model, clock_mhz)
        self.engine.on_page(page, self._pace, slo, judged)
        if slo != self._slo:
            self._slo, self.kept = slo, {}
            self._window.restart()
        for metric, kept in self.engine.newest.items():
            if self._window.observe(metric, page.observed_s, kept):
                before = self.kept.get(metric, Attained(0.0, 0.0))
                self.kept[metric] = Attained(before.met + kept.met, before.total + kept.total)

    def _paced(
        self,
        told: EngineState | None,
        model: tuple[CompiledModel | None, EngineShape | None, Traffic | None],
        clock_mhz: int | None,
    ) -> Pace:
        compiled, shape, traffic = model
        if told is None or compiled is None or shape is None or traffic is None:
            return NO_PACE
        would = self.engine.state(told)
        # Known in sums alone, requests stay as much longer as their tokens take (Little).
        longer = 1.0 / self._pace.ratio if would is told else 1.0
        loads = (would.running * longer, would.kv_used_tokens * longer)
        at_default = (float(told.running), told.kv_used_tokens)
        return pace_of(compiled, shape, traffic, clock_mhz, at_default, loads)

    def state(self, told: EngineState) -> EngineState:
        """The engine as it would be."""
        return self.engine.state(told)

    def budget(self, now_s: float, slo: Slo, window_s: float) -> Mapping[Metric, Tally]:
        """Promises as they would have been kept over the operator's window."""
        if window_s != self._window.window_s:
            self._window = Attainment(window_s)
        return self._window.budget(now_s, slo)


def would_error_ratio(power_error_ratio: float, would_ratio: float) -> float:
    """Half-width of the saving's 95 % interval, as a share of the baseline.

    `power_error_ratio`: mean error of the model's power on loads it had not seen; `would_ratio`: energy that
    would have been used over the baseline, the ratio of two such powers.
    """
    model = NORMAL_95 * MEAN_TO_SD * 2.0**0.5 * power_error_ratio * would_ratio
    return float((model**2 + TRANSFER_RATIO**2) ** 0.5)
