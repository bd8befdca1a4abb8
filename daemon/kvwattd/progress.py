"""Does the metrics page move as it must while work is going on? A cached page answers in time and is old.

Work is in progress where the page shows requests inside, or the GPUs are busy; then steps are counted
page by page. Pure: times are those of the pages and the readings.
"""

from __future__ import annotations

from kvwatt.state import EngineSnapshot

STANDSTILL_S = 2.0  # longer than any engine step, and than the second that utilisation figures lag
BUSY_UTILIZATION = 0.5


class Progress:
    """When the page last moved or had no reason to, and when the GPUs last rested."""

    def __init__(self, stale_after_s: float) -> None:
        self._limit_s = max(stale_after_s, STANDSTILL_S)
        self._page: EngineSnapshot | None = None
        self._moved_s = 0.0
        self._excused_s = 0.0
        self._rested_s: float | None = None
        self._read_s = 0.0

    def on_page(self, page: EngineSnapshot) -> None:
        """A new accepted page."""
        old, self._page = self._page, page
        if old is None or page.asleep or old.iterations.count != page.iterations.count:
            self._moved_s = page.observed_s
        if self._moved_s == page.observed_s or page.running + page.waiting == 0:
            self._excused_s = page.observed_s

    def on_gpu(self, observed_s: float, utilization: float) -> None:
        """The least busy GPU of the instance."""
        self._read_s = observed_s
        if utilization < BUSY_UTILIZATION:
            self._rested_s = observed_s

    @property
    def stalled(self) -> bool:
        """Requests are inside and the newest page counts no step since the one before."""
        return self._page is not None and self._page.observed_s > self._excused_s

    def fault(self) -> str | None:
        """Why the page cannot be of now, None while it can."""
        page = self._page
        if page is None:
            return None
        still_s = page.observed_s - self._excused_s
        if still_s > self._limit_s:
            inside = page.running + page.waiting
            return f"the page stands still: {inside} requests inside, no step counted for {still_s:.1f} s"
        if self._rested_s is None:
            return None
        busy_s = min(page.observed_s, self._read_s) - max(self._moved_s, self._rested_s)
        if busy_s > self._limit_s:
            return f"the page stands still: no step counted while the GPUs were busy for {busy_s:.1f} s"
        return None
