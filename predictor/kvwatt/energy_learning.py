"""Learning the energy of windows while serving: a bounded memory, a challenger, and the test it has to pass.

    challenger = fit(all windows before the newest)
    serves if its error on the newest, which neither has seen, is smaller beyond chance (`refit.compare`)

Idle windows and busy ones, rare clocks and common ones: the memory keeps the newest as they came and older
ones by stratum, so that what is rare is not pushed out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvwatt.energy_factors import FACTORS, Windows, index_of, windows_of
from kvwatt.energy_model import EnergyModel, Prior
from kvwatt.energy_prior import StepEnergy
from kvwatt.energy_training import EnergyOptions, fit_energy
from kvwatt.lattice import Floats
from kvwatt.refit import MIN_NEWEST, NEWEST_SHARE, Verdict, compare
from kvwatt.training import TrainingError

RECENT = 2048  # 5.7 hours of 10 s windows
PER_STRATUM, STRATA = 64, 64
MIN_TRAINING = 120
_CLOCK_STEP = math.log(1.05)
_CLOCK, _TOKENS = 1 + index_of("clock_mhz"), 1 + index_of("output_tokens_per_s")


@dataclass(frozen=True, slots=True)
class Counted:
    """One window: `row` from `energy_factors.window_row`, joules by the counter. `number` counts up."""

    number: int
    row: tuple[float, ...]
    energy_j: float

    def __post_init__(self) -> None:
        if len(self.row) != len(FACTORS) + 1 or not 0.0 < self.energy_j < math.inf:
            raise ValueError(f"a window has {len(FACTORS) + 1} numbers and joules > 0, got {self}")

    @property
    def stratum(self) -> tuple[int, int]:
        """Clock within 5 %, tokens per second within an octave."""
        clock, tokens = self.row[_CLOCK], self.row[_TOKENS]
        step = round(math.log(clock) / _CLOCK_STEP) if clock > 0 else -1
        return step, round(math.log2(1.0 + tokens)) if tokens >= 0 else -1


class WindowRing:
    """At most `recent` + `strata` x `per_stratum` windows."""

    def __init__(self, recent: int = RECENT, strata: int = STRATA, per_stratum: int = PER_STRATUM) -> None:
        self._recent: deque[Counted] = deque()
        self._limits = (recent, strata, per_stratum)
        self._older: dict[tuple[int, int], deque[Counted]] = {}
        self.last = 0

    def __len__(self) -> int:
        return len(self._recent) + sum(len(kept) for kept in self._older.values())

    def add(self, row: tuple[float, ...], energy_j: float) -> None:
        """Keep a window. Raises ValueError for one that cannot be."""
        self.restore(Counted(self.last + 1, row, energy_j))

    def restore(self, window: Counted) -> None:
        """A window of an earlier run, in order. Raises ValueError for one that is not newer than the last."""
        recent, strata, per_stratum = self._limits
        if window.number <= self.last:
            raise ValueError(f"window {window.number} comes after {self.last}: numbers must rise")
        self._recent.append(window)
        self.last = window.number
        if len(self._recent) <= recent:
            return
        oldest = self._recent.popleft()
        if oldest.stratum not in self._older and len(self._older) >= strata:
            del self._older[min(self._older, key=lambda stratum: self._older[stratum][-1].number)]
        self._older.setdefault(oldest.stratum, deque(maxlen=per_stratum)).append(oldest)

    def windows(self) -> list[Counted]:
        """Everything kept, oldest first."""
        kept = [window for stratum in self._older.values() for window in stratum]
        return sorted([*kept, *self._recent], key=lambda window: window.number)


@dataclass(frozen=True, slots=True)
class EnergyRefit:
    """What became of a challenger. `trained_through`: the newest window that it has seen."""

    verdict: Verdict
    challenger: EnergyModel | None = None
    trained_through: int = 0


def refit_energy(
    champion: EnergyModel,
    counted: Sequence[Counted],
    seen_through: int,
    step: StepEnergy | None,
    prior: Prior = Prior.BOTH,
    options: EnergyOptions | None = None,
) -> EnergyRefit:
    """Fit a challenger and judge it on windows that neither has seen (`seen_through`: the champion's)."""
    ordered = sorted(counted, key=lambda window: window.number)
    unseen = [window for window in ordered if window.number > seen_through]
    newest = unseen[-max(round(len(unseen) * NEWEST_SHARE), MIN_NEWEST) :]
    training = [window for window in ordered if not newest or window.number < newest[0].number]
    if len(newest) < MIN_NEWEST or len(training) < MIN_TRAINING:
        told = f"{len(training)} windows to train on and {len(newest)} to compare on"
        return EnergyRefit(Verdict(False, f"too few: {told}, {MIN_TRAINING} and {MIN_NEWEST} are needed"))
    try:
        challenger = fit_energy(*columns_of(training), prior, step, options)
    except TrainingError as error:
        return EnergyRefit(Verdict(False, f"no challenger: {error}", len(newest)))
    windows, joules = columns_of(newest)
    said = [model.power_w(windows, step) * windows.duration_s for model in (champion, challenger)]
    return EnergyRefit(compare(joules, *said), challenger, training[-1].number)


def columns_of(counted: Sequence[Counted]) -> tuple[Windows, Floats]:
    """Windows and their joules as columns."""
    rows = windows_of(window.row for window in counted)
    return rows, np.array([window.energy_j for window in counted], dtype=np.float64)
