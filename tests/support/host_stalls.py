"""How long the machine of the tests stood still: gaps in the sleep of a thread that does nothing else.

A shared machine takes the processors away for seconds at a time, from everything at once. No promise
about time can be kept then, and a test that holds the system to one adds what `lost_s` measured.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import cache

LOOK_S = 0.02
# Two cores shared by a dozen processes make a thread wait for hundredths of a second, not longer.
GAP_S = 0.2
KEPT = 10_000


class HostStalls:
    """Gaps of this process, newest last; times are monotonic seconds."""

    def __init__(self) -> None:
        self._gaps: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._seen_s = time.monotonic()
        threading.Thread(target=self._watch, name="host stalls", daemon=True).start()

    def lost_s(self, since_s: float, until_s: float = float("inf")) -> float:
        """Seconds of the time between that were lost in gaps of GAP_S or more; one may still be open."""
        now_s = time.monotonic()
        gaps = [*self._gaps, *_gap(self._seen_s, now_s)]
        return sum(max(min(end, until_s) - max(begin, since_s), 0.0) for begin, end in gaps)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            now_s = time.monotonic()
            self._gaps.extend(_gap(self._seen_s, now_s))
            self._seen_s = now_s


def _gap(before_s: float, now_s: float) -> list[tuple[float, float]]:
    """What lay between two looks beyond the sleep that was asked for; nothing where it was short."""
    begin_s = before_s + LOOK_S
    return [(begin_s, now_s)] if now_s - begin_s >= GAP_S else []


@cache
def host_stalls() -> HostStalls:
    """The one of this process, which watches from the first call on."""
    return HostStalls()


def lost_s(since_s: float, until_s: float = float("inf")) -> float:
    """What the machine lost between two monotonic times."""
    return host_stalls().lost_s(since_s, until_s)
