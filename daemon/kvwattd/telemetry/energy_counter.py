"""Energy of one GPU as our own sum of counter deltas. Pure: time is an argument (monotonic seconds).

NVML's counter (mJ since driver load) is refreshed every 20-100 ms, starts anew with the driver, and has been
seen to jump. So:
- a negative delta means a new counter: it is the new base, and power x time bridges the gap, as an estimate;
- a delta above 1.5 x power limit x time is refused, and bridged the same way;
- a counter that stands still for several refreshes while power is drawn is frozen, and bridged the same way;
- over a gap without readings the counter is believed within these bounds, but not compared with power;
- power is derived from the counter only over windows of at least a second, and compared with what the driver
  reports as power over the same window: they should agree within a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

PLAUSIBLE_FACTOR = 1.5
REFRESH_S = 0.1  # a delta may hold this much more time than lies between the two readings
FROZEN_S = 0.3  # three refreshes
GAP_S = 10.0
WINDOW_S = 1.0
MISMATCH_RATIO = 0.1
MISMATCH_FLOOR_W = 5.0  # below this difference a ratio says nothing


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """Sums since the first reading. `estimated_j` is the part of `total_j` that no counter vouches for."""

    total_j: float
    estimated_j: float
    resets: int  # the counter began anew
    refused: int  # deltas that could not be true
    frozen: int  # readings in a row at which the counter stood still under power
    gaps: int  # stretches of more than GAP_S without a reading
    counter_power_w: float | None  # from the counter, over the last full window; None until there is one
    reported_power_w: float | None  # the driver's own figure, averaged over the same window
    disagrees: bool  # they differ by more than a tenth
    disagreements: int  # windows in which they did


def new_doubts(before: EnergyReading | None, now: EnergyReading) -> list[str]:
    """What began between two readings and makes the figures less certain, in words."""
    if before is None:
        return []
    doubts = []
    if now.resets > before.resets:
        doubts.append("the counter began anew; power x time bridges the gap, as an estimate")
    if now.refused > before.refused:
        doubts.append("the counter grew by more than the GPU can draw; power x time is taken, as an estimate")
    if now.frozen and not before.frozen:
        doubts.append("the counter stands still under power; power x time is taken, as an estimate")
    if now.disagrees and not before.disagrees and not before.disagreements:
        told = f"{now.counter_power_w:.0f} W by the counter, {now.reported_power_w:.0f} W reported"
        doubts.append(f"counter and power differ by more than a tenth: {told}")
    return doubts


class EnergyCounter:
    """Feed it every reading of one GPU, in order."""

    def __init__(self, power_limit_w: float) -> None:
        if not (isfinite(power_limit_w) and power_limit_w > 0):
            raise ValueError(f"power_limit_w = {power_limit_w!r}: expected a positive number of watts")
        self._limit_w = power_limit_w
        self._last: tuple[float, int | None, float] | None = None  # time, counter, power
        self._total_j = 0.0
        self._estimated_j = 0.0
        self._resets = 0
        self._refused = 0
        self._frozen = 0
        self._gaps = 0
        self._window = _Window()

    def update(self, t_s: float, counter_mj: int | None, power_w: float) -> EnergyReading:
        """`counter_mj` None where the GPU has no counter (before Volta): then all is estimated."""
        if self._last is None:
            self._window.start(t_s)
        elif t_s > self._last[0]:
            self._add(t_s, counter_mj, power_w)
        if self._last is None or t_s > self._last[0]:
            self._last = (t_s, counter_mj, power_w)
        return self.reading()

    def reading(self) -> EnergyReading:
        window = self._window
        return EnergyReading(
            total_j=self._total_j,
            estimated_j=self._estimated_j,
            resets=self._resets,
            refused=self._refused,
            frozen=self._frozen,
            gaps=self._gaps,
            counter_power_w=window.counter_w,
            reported_power_w=window.reported_w,
            disagrees=window.disagrees,
            disagreements=window.disagreements,
        )

    def _add(self, t_s: float, counter_mj: int | None, power_w: float) -> None:
        last_s, last_mj, last_w = self._last or (t_s, None, power_w)
        dt_s = t_s - last_s
        bridge_j = 0.5 * (last_w + power_w) * dt_s
        delta_j = None if counter_mj is None or last_mj is None else (counter_mj - last_mj) / 1e3
        if delta_j is not None and delta_j < 0.0:
            self._resets += 1
            delta_j = None
        elif delta_j is not None and delta_j > PLAUSIBLE_FACTOR * self._limit_w * (dt_s + REFRESH_S):
            self._refused += 1
            delta_j = None
        elif delta_j == 0.0 and dt_s >= FROZEN_S and min(last_w, power_w) > MISMATCH_FLOOR_W:
            self._frozen += 1
            delta_j = None
        self._gaps += dt_s > GAP_S
        if delta_j is None:
            self._estimated_j += bridge_j
        if delta_j is None or dt_s > GAP_S:
            self._window.start(t_s)  # a bridged window cannot check itself
        else:
            self._window.add(t_s, delta_j, bridge_j)
        self._total_j += bridge_j if delta_j is None else delta_j


class _Window:
    """Counter against reported power, over at least WINDOW_S."""

    def __init__(self) -> None:
        self.counter_w: float | None = None
        self.reported_w: float | None = None
        self.disagreements = 0
        self._start_s = 0.0
        self._counter_j = 0.0
        self._reported_j = 0.0

    @property
    def disagrees(self) -> bool:
        if self.counter_w is None or self.reported_w is None:
            return False
        difference_w = abs(self.counter_w - self.reported_w)
        return difference_w > max(MISMATCH_RATIO * self.reported_w, MISMATCH_FLOOR_W)

    def start(self, t_s: float) -> None:
        self._start_s, self._counter_j, self._reported_j = t_s, 0.0, 0.0

    def add(self, t_s: float, counter_j: float, reported_j: float) -> None:
        self._counter_j += counter_j
        self._reported_j += reported_j
        span_s = t_s - self._start_s
        if span_s >= WINDOW_S:
            self.counter_w, self.reported_w = self._counter_j / span_s, self._reported_j / span_s
            self.disagreements += self.disagrees
            self.start(t_s)
