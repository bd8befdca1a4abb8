"""An estimate of the energy saved so far. An estimate only: the ledger proves savings, this shows them.

Measured energy is scaled by the energy model's ratio between the driver's default clock and the clock chosen,
both in the steady state of the same traffic: the counter supplies the joules, the model only the ratio. The
batch that runs now is no measure: at the default clock fewer requests would be in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvwatt.compiled import CompiledModel
from kvwatt.counterfactual import AtClocks, at_clocks
from kvwatt.state import Decision, EngineShape, EngineSnapshot, Slo
from kvwatt.traffic import Traffic

LONGEST_S = 60.0  # between two pages, for the tokens between them to be of now
PERIOD_S = 5.0  # how often traffic is judged anew: it changes slowly, and each time costs half a millisecond


@dataclass
class Savings:
    """Sums over all intervals in which decisions were made."""

    actual_j: float = 0.0
    baseline_j: float = 0.0
    _skip: bool = True
    _at: AtClocks | None = None
    _judged_s: float = float("-inf")
    _page: EngineSnapshot | None = None

    def pause(self) -> None:
        """The regime changed: the interval in progress belongs to neither."""
        self._skip = True

    def due(self, now_s: float) -> bool:
        """Whether it is time to `judge`."""
        return now_s - self._judged_s >= PERIOD_S

    def judge(
        self,
        now_s: float,
        model: CompiledModel | None,
        shape: EngineShape | None,
        slo: Slo,
        traffic: Traffic | None,
        reaction_s: float,
        page: EngineSnapshot | None = None,
    ) -> None:
        """What the model says of this traffic at every clock; where it says nothing, nothing is saved.

        With a `page`, of the tokens that came since the one before: an estimated rate outlives its traffic,
        and what an idle engine draws would count as saved."""
        self._judged_s, before, self._page = now_s, self._page, page
        if model is None or shape is None or traffic is None:
            self._at = None
            return
        per_s = _tokens_per_s(before, page) if page is not None and before is not None else None
        if per_s is None:
            rate = traffic.arrival_per_s
            per_s = rate * traffic.prompt_mean_tokens, rate * traffic.output_mean_tokens
        self._at = at_clocks(model, shape, slo, traffic, *per_s, reaction_s)

    def like(self, other: Savings) -> None:
        """Judged as another has been."""
        self._at, self._judged_s = other._at, other._judged_s

    def observe(self, used_j: float, decision: Decision | None, applied: bool) -> None:
        """Energy used since the last reading under `decision`.

        Where the decision was not applied (shadow mode) the GPUs ran at default: what was used is the
        baseline, and `actual_j` becomes what the decision would have used.
        """
        if self._skip or used_j < 0:
            self._skip = False
            return
        ratio = self._ratio(decision)
        self.actual_j += used_j if applied else used_j / ratio
        self.baseline_j += used_j * ratio if applied else used_j

    @property
    def saved_j(self) -> float:
        return self.baseline_j - self.actual_j

    @property
    def ratio(self) -> float | None:
        return self.saved_j / self.baseline_j if self.baseline_j > 0 else None

    def _ratio(self, decision: Decision | None) -> float:
        """Power at the default clock over power at the decision's."""
        if self._at is None or decision is None or decision.clock_mhz is None:
            return 1.0
        watts = self._at.power_w
        chosen_w = float(np.interp(decision.clock_mhz, self._at.clocks_mhz, watts))
        return float(watts[-1]) / chosen_w if chosen_w > 0 else 1.0


def _tokens_per_s(before: EngineSnapshot, page: EngineSnapshot) -> tuple[float, float] | None:
    """Prompt tokens computed and tokens generated, from the counters; None across a restart or a gap."""
    dt_s = page.observed_s - before.observed_s
    prompt, generated = (
        page.prompt_tokens_total - before.prompt_tokens_total,
        page.generation_tokens_total - before.generation_tokens_total,
    )
    cached = page.prompt_tokens_cached_total - before.prompt_tokens_cached_total
    if not 0.0 < dt_s <= LONGEST_S or min(prompt, generated, cached) < 0.0:
        return None
    return max(prompt - cached, 0.0) / dt_s, generated / dt_s
