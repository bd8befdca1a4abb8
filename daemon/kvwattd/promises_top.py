"""What the time up to now would have been, had the top clock been held: which misses no clock avoids.

A lower clock makes every step longer and, as requests stay longer, the batch larger, which makes steps longer
again. If only the clock were asked about, the misses of a batch that the clock itself gathered would be taken
for unavoidable. So the number of requests that would be inside at the top clock is followed, too: the same
come; each has the same chance to end per token, and tokens come as much faster.
"""

from __future__ import annotations

from bisect import bisect_left

from kvwatt.compiled import CompiledModel
from kvwatt.state import Decision, EngineSnapshot
from kvwatt.traffic import kv_used_tokens

PAGES_KEPT = 2048  # for longer than requests run


class TopBatch:
    """Requests that would be inside at the top clock; never more than there are."""

    def __init__(self) -> None:
        self.inside = 0.0
        self._before: EngineSnapshot | None = None

    def restart(self) -> None:
        """Another engine run."""
        self._before = None

    def stretch(self, page: EngineSnapshot, decision: Decision | None, model: CompiledModel | None) -> float:
        """How many times as long steps took since the page before as at the top clock with the batch there.

        `decision`: in force since then; None: driver default. 1 before anything is known."""
        there = float(page.running + page.waiting)
        old, self._before = self._before, page
        if old is None or model is None or page.observed_s <= old.observed_s:
            self.inside = there
            return 1.0
        ended = max(page.requests_finished_total - old.requests_finished_total, 0.0)
        before = float(old.running + old.waiting)
        mean = max((there + before) / 2.0, 1.0)
        ratio = clock_stretch(decision) / batch_share(model, page, mean, self.inside)
        came = max(there - before + ended, 0.0)
        self.inside = min(max(self.inside + came - ended * ratio * self.inside / mean, 0.0), there)
        return max(ratio, 1.0)


def clock_stretch(decision: Decision | None) -> float:
    """How many times as long steps take at the decision's clock as at the driver's default; None: there."""
    if decision is None or decision.chosen is None or decision.at_default is None:
        return 1.0
    return max(decision.chosen.tbt_s / decision.at_default.tbt_s, 1.0)


def batch_share(model: CompiledModel, page: EngineSnapshot, inside: float, fewer: float) -> float:
    """A decode step at the top clock with `fewer` requests, as a share of one with `inside`."""
    each = kv_used_tokens(page) / max(page.running, 1)
    sizes = (max(inside, 1.0), max(min(fewer, inside), 1.0))
    whole, part = (float(model.with_prompts(n, n * each, (0.0,))[0][0, -1]) for n in sizes)
    return min(part / whole, 1.0)


class AtTop:
    """What the time up to now would have been at the top clock: steps as much shorter as is told."""

    def __init__(self) -> None:
        self.batch = TopBatch()
        self._now_s: list[float] = []
        self._top_s: list[float] = []

    def restart(self) -> None:
        """Another engine run; the times stay."""
        self.batch.restart()

    def on_time(self, now_s: float, stretch: float) -> None:
        """The time since the last call ran `stretch` times as long as at the top clock."""
        if self._now_s and now_s <= self._now_s[-1]:
            return
        gone_s = now_s - self._now_s[-1] if self._now_s else 0.0
        self._top_s.append((self._top_s[-1] if self._top_s else 0.0) + gone_s / max(stretch, 1.0))
        self._now_s.append(now_s)
        if len(self._now_s) > 2 * PAGES_KEPT:
            del self._now_s[:PAGES_KEPT], self._top_s[:PAGES_KEPT]

    def seconds(self, last_s: float) -> float:
        """The last so many seconds, at the top clock; before what is remembered nothing was stretched."""
        if not self._now_s:
            return last_s
        begin_s = self._now_s[-1] - last_s
        i = bisect_left(self._now_s, begin_s)
        if i == 0:
            return self._top_s[-1] - self._top_s[0] + self._now_s[0] - begin_s
        share = (begin_s - self._now_s[i - 1]) / (self._now_s[i] - self._now_s[i - 1])
        begin = self._top_s[i - 1] + share * (self._top_s[i] - self._top_s[i - 1])
        return self._top_s[-1] - begin
