"""An estimate of the energy saved so far. An estimate only: the ledger proves savings, this shows them.

Measured energy is scaled by the energy model's ratio between the driver's default clock and the clock
chosen, for the same traffic; the counter supplies the joules, the model only the ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvwatt.state import Decision


@dataclass
class Savings:
    """Sums over all intervals in which decisions were made."""

    actual_j: float = 0.0
    baseline_j: float = 0.0
    _skip: bool = True

    def pause(self) -> None:
        """The regime changed: the interval in progress belongs to neither."""
        self._skip = True

    def observe(self, used_j: float, decision: Decision | None, applied: bool) -> None:
        """Energy used since the last reading under `decision`.

        Where the decision was not applied (shadow mode) the GPUs ran at default: what was used is the
        baseline, and `actual_j` becomes what the decision would have used.
        """
        if self._skip or used_j < 0:
            self._skip = False
            return
        ratio = _ratio(decision)
        self.actual_j += used_j if applied else used_j / ratio
        self.baseline_j += used_j * ratio if applied else used_j

    @property
    def saved_j(self) -> float:
        return self.baseline_j - self.actual_j

    @property
    def ratio(self) -> float | None:
        return self.saved_j / self.baseline_j if self.baseline_j > 0 else None


def _ratio(decision: Decision | None) -> float:
    if decision is None or decision.chosen is None or decision.at_default is None:
        return 1.0
    if decision.clock_mhz is None or decision.chosen.power_w <= 0:
        return 1.0
    return decision.at_default.power_w / decision.chosen.power_w
