"""How many requests came to the whole pool in a window, from the counters of its members' pages.

A member that cannot be seen leaves a gap: nothing is told for that window, and never zero. What the others
got is told apart (`seen_per_s`): the pool got at least that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvwatt.state import EngineSnapshot

LEAST_SHARE = 0.5  # of a window that a member's pages must span, to be extrapolated to the whole of it


@dataclass(frozen=True, slots=True)
class Window:
    """Requests that arrived within `dt_s` seconds from `start_s` on (monotonic)."""

    start_s: float
    dt_s: float
    arrivals: float


class Arrivals:
    """Call `window` at every plan with the newest page of each member that may have requests.

    `seen_per_s`: arrivals at those that could be seen, as of the last window; 0 where none could."""

    def __init__(self) -> None:
        self.seen_per_s = 0.0
        self._pages: dict[str, EngineSnapshot] = {}
        self._since_s: float | None = None

    def window(self, now_s: float, pages: Mapping[str, EngineSnapshot | None]) -> Window | None:
        """What came since the last call; None where it is not known of every member.

        A member that was not there before is counted from its next page on.
        """
        before, start_s = self._pages, self._since_s
        self._pages = {name: page for name, page in pages.items() if page is not None}
        self._since_s = now_s
        self.seen_per_s = 0.0
        if start_s is None or now_s <= start_s:
            return None
        dt_s = now_s - start_s
        rates = [_rate(before.get(name), page, dt_s) for name, page in self._pages.items()]
        known = [rate for rate in rates if rate is not None]
        self.seen_per_s = max(sum(known), 0.0)
        if not pages or len(known) < len(pages):
            return None
        return Window(start_s, dt_s, self.seen_per_s * dt_s)


def _rate(before: EngineSnapshot | None, page: EngineSnapshot, dt_s: float) -> float | None:
    """Requests a second between two pages of one engine run; None where they do not tell."""
    if before is None or page.requests_finished_total < before.requests_finished_total:
        return None
    span_s = page.observed_s - before.observed_s
    if span_s < LEAST_SHARE * dt_s:
        return None
    came = _total(page) - _total(before)
    return came / span_s


def _total(page: EngineSnapshot) -> float:
    return page.requests_finished_total + page.running + page.waiting
