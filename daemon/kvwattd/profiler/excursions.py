"""Bounded exploration: which clock to try next under live traffic, and when to turn back. Pure.

An excursion goes one rung below what has proved safe, for a short window, and returns to the driver's
default. Any sign of trouble ends it, takes a rung back and doubles the rest before the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvwattd.profiler.plan import worst_next_s
from kvwattd.profiler.windows import Window

KV_HIGH = 0.85
MARGIN = 0.9  # of a limit: closer to it nothing is tried, and a trial is over
LONGEST_REST_S = 60.0


@dataclass(frozen=True, slots=True)
class Guarded:
    """The promises that exploration must not touch, in seconds."""

    tbt_s: float
    ttft_s: float

    def sign(self, window: Window) -> str | None:
        """The first sign of trouble that a window shows, None where all is well."""
        after = window.after
        if after.waiting > 0 and after.waiting >= window.before.waiting:
            return f"{after.waiting} requests wait"
        if after.preemptions_total > window.before.preemptions_total:
            return "requests were preempted"
        if after.kv_usage > KV_HIGH:
            return f"KV cache {100 * after.kv_usage:.0f} % full"
        itl_s, ttft_s = window.itl_s, window.ttft_s
        if itl_s is not None and itl_s > MARGIN * self.tbt_s:
            return f"TBT {itl_s:.3f} s, limit {self.tbt_s:g} s"
        if ttft_s is not None and ttft_s > MARGIN * self.ttft_s:
            return f"TTFT {ttft_s:.3f} s, limit {self.ttft_s:g} s"
        return None

    def allows(self, window: Window, from_mhz: float, to_mhz: float) -> bool:
        """Whether the promises would hold even if everything slowed down as much as the clock."""
        itl_s, ttft_s = window.itl_s or 0.0, window.ttft_s or 0.0
        tbt_ok = worst_next_s(itl_s, from_mhz, to_mhz) <= MARGIN * self.tbt_s
        return tbt_ok and worst_next_s(ttft_s, from_mhz, to_mhz) <= MARGIN * self.ttft_s


@dataclass
class Excursions:
    """`next` gives the clock to try, `came_back` takes how it went. Clocks from high to low."""

    clocks_mhz: tuple[int, ...]
    rest_s: float = 1.0
    safe: int = 0  # rungs below the top that have been tried without a sign
    _visits: dict[int, int] = field(default_factory=dict)
    _patience: float = 1.0

    def next(self, guarded: Guarded, window: Window) -> int | None:
        """The least visited rung that is safe or one below, and allowed from what `window` showed.

        `window` was measured at the driver's default; None where nothing may be tried now.
        """
        if guarded.sign(window) is not None:
            return None
        lowest = min(self.safe + 1, len(self.clocks_mhz) - 1)
        allowed = [
            rung
            for rung in range(1, lowest + 1)
            if guarded.allows(window, self.clocks_mhz[0], self.clocks_mhz[rung])
        ]
        if not allowed:
            return None
        return min(allowed, key=lambda rung: (self._visits.get(rung, 0), -rung))

    def came_back(self, rung: int, well: bool) -> float:
        """Seconds to rest before the next excursion."""
        self._visits[rung] = self._visits.get(rung, 0) + 1
        if well:
            self.safe = max(self.safe, rung)
            self._patience = max(self._patience / 2, 1.0)
        else:
            self.safe = min(self.safe, rung - 1)
            self._patience *= 2
        return min(self.rest_s * self._patience, LONGEST_REST_S)
