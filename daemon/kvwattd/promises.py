"""How the promises were kept of late: request by request from the tap, else from the page's histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvwatt.attainment import WINDOW_S, Attained, Attainment, Tally, targets, within
from kvwatt.state import EngineSnapshot, Histogram, Metric, Slo
from kvwatt.traffic import difference
from kvwattd.promises_top import AtTop
from kvwattd.vllm_plugin.wire import Finished

ENDED = 2  # vLLM's FinishReason: below, the request came to its end; from there on aborted or failed


@dataclass(frozen=True, slots=True)
class Judged:
    """Requests told one by one since the last page: waits for a first token, and those that finished."""

    first_tokens_s: Sequence[float]
    finished: Sequence[Finished]

    def latencies_s(self, metric: Metric) -> list[float]:
        ended = [item for item in self.finished if item.reason < ENDED]
        if metric is Metric.TTFT:
            return list(self.first_tokens_s)
        if metric is Metric.E2E:
            return [item.e2e_s for item in ended]
        return [item.decode_s / (item.output_tokens - 1) for item in ended if item.output_tokens > 1]


class Promises:
    """Feed every page; read `budget`."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.attainment = Attainment(window_s)
        self._slo: Slo | None = None
        self._before: EngineSnapshot | None = None
        self.at_top = AtTop()

    @property
    def window_s(self) -> float:
        return self.attainment.window_s

    def over(self, window_s: float) -> None:
        """Count over another window from now on."""
        if window_s != self.window_s:
            self.attainment = Attainment(window_s)

    def restart(self) -> None:
        """Another engine run: its counters start anew. What was promised to clients stays counted."""
        self._before = None
        self.at_top.restart()

    def on_page(self, page: EngineSnapshot, slo: Slo, judged: Judged | None, stretch: float = 1.0) -> None:
        """Count those judged since the page before; `judged` where they were told one by one.

        `stretch`: how many times as long the clock in force took as the top clock would have taken."""
        self.at_top.on_time(page.observed_s, stretch)
        if slo != self._slo:
            self.attainment.restart()
            self._slo = slo
        old, self._before = self._before, page
        if old is None or page.observed_s <= old.observed_s:
            return
        for metric, target in targets(slo).items():
            kept, avoidable = (counted(metric, page, old, target.limit_s) if judged is None else None), 0.0
            if judged is not None:
                seconds = judged.latencies_s(metric)
                late = [s for s in seconds if not s <= target.limit_s]
                kept = Attained(float(len(seconds) - len(late)), float(len(seconds)))
                avoidable = self._avoidable(metric, judged, target.limit_s) if late else 0.0
            if kept is not None:
                self.attainment.observe(metric, page.observed_s, kept, avoidable)

    def _avoidable(self, metric: Metric, judged: Judged, limit_s: float) -> float:
        """Of those just judged, how many missed a limit that they would have kept at the top clock."""
        at_top = self.at_top.seconds
        if metric is Metric.TBT:
            ended = [i for i in judged.finished if i.reason < ENDED and i.output_tokens > 1]
            pairs = [(i.decode_s, limit_s * (i.output_tokens - 1)) for i in ended]
        else:
            pairs = [(s, limit_s) for s in judged.latencies_s(metric)]
        return float(sum(s > most >= at_top(s) for s, most in pairs))

    def budget(self, now_s: float, slo: Slo) -> Mapping[Metric, Tally]:
        """Kept, missed and permitted misses of each promise over the window."""
        return self.attainment.budget(now_s, slo)


def counted(metric: Metric, page: EngineSnapshot, old: EngineSnapshot, limit_s: float) -> Attained | None:
    """From the growth of the page's histogram; None where it is not one and the same histogram."""
    new, before = _histogram(metric, page), _histogram(metric, old)
    if new.bounds != before.bounds or new.count < before.count:
        return None
    kept = within(difference(new, before), limit_s)
    return Attained(min(max(kept.met, 0.0), kept.total), kept.total)


def _histogram(metric: Metric, page: EngineSnapshot) -> Histogram:
    return {Metric.TTFT: page.ttft_s, Metric.TBT: page.tbt_s, Metric.E2E: page.e2e_s}[metric]
