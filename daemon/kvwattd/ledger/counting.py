"""Sums of one interval while it is open."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from kvwatt.attainment import Attained, Attainment
from kvwatt.state import EngineSnapshot, Metric

MOST = 2.0**40  # between two pages; no counter grows faster, and sums stay whole numbers


class JudgedRequests(Attainment):
    """Takes the place of the sliding window in `Promises`: counts until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.met: Counter[Metric] = Counter()
        self.seen: Counter[Metric] = Counter()

    def restart(self) -> None:
        """Other promises are made: what was judged by those before stays judged."""

    def observe(self, metric: Metric, now_s: float, kept: Attained, avoidable: float = 0.0) -> bool:
        if not 0.0 <= kept.met <= kept.total < MOST:
            return False
        met, seen = round(1e3 * kept.met), round(1e3 * kept.total)
        self.met[metric] += met
        self.seen[metric] += seen
        return True

    def take(self, prefix: str = "") -> dict[str, int]:
        """Thousandths of requests, by the names of an entry's columns."""
        found = {f"{prefix}{metric}_met": self.met[metric] for metric in Metric}
        found |= {f"{prefix}{metric}_seen": self.seen[metric] for metric in Metric}
        self.met.clear()
        self.seen.clear()
        return found


class Tokens:
    """Growth of the engine's counters: prompt tokens computed, tokens generated, requests finished."""

    def __init__(self) -> None:
        self._before: EngineSnapshot | None = None
        self._sums = [0.0, 0.0, 0.0]
        self._taken = [0, 0, 0]

    def on_page(self, page: EngineSnapshot, first: bool) -> None:
        """`first`: of an engine run, whose counters begin here."""
        before, self._before = self._before, page
        if before is None or first:
            return
        for i, (new, old) in enumerate(zip(_counters(page), _counters(before), strict=True)):
            self._sums[i] += min(max(new - old, 0.0), MOST)

    def take(self) -> tuple[int, int, int]:
        """Since the last time; fractions are carried over."""
        whole = [int(value) for value in self._sums]
        grown = [new - old for new, old in zip(whole, self._taken, strict=True)]
        self._taken = whole
        return grown[0], grown[1], grown[2]


def _counters(page: EngineSnapshot) -> tuple[float, float, float]:
    computed = page.prompt_tokens_total - page.prompt_tokens_cached_total
    return computed, page.generation_tokens_total, page.requests_finished_total


@dataclass
class Sums:
    """Integrals over time; joules and seconds as floats until the interval closes."""

    time_s: float = 0.0
    energy_j: float = 0.0
    estimated_j: float = 0.0
    clock_mhz_s: float = 0.0
    decided_s: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # by clock, MHz
    clock_min_mhz: int = 0
    clock_max_mhz: int = 0
    regimes: Counter[str] = field(default_factory=Counter)

    def clock(self, clock_mhz: float, lowest: int, highest: int, dt_s: float) -> None:
        self.clock_mhz_s += clock_mhz * dt_s
        self.clock_min_mhz = min(self.clock_min_mhz or lowest, lowest)
        self.clock_max_mhz = max(self.clock_max_mhz, highest)


class Whole:
    """Turns growing sums into whole numbers whose sum is that of the whole: fractions are carried over."""

    def __init__(self) -> None:
        self._rest: dict[str, float] = {}

    def __call__(self, name: str, value: float) -> int:
        total = value + self._rest.get(name, 0.0)
        whole = round(total)
        self._rest[name] = total - whole
        return whole
