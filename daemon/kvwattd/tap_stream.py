"""What the tap tells of one instance, and whether it may be relied on.

The metrics page stays the judge: over the last seconds the tap must have told of as many generated tokens
as the page counted. A tap that lost records, sees only a part of the engine or belongs to another one does
not pass, and the daemon goes by the page. Pure: times are passed in.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.tap_agreement import Agreement
from kvwattd.tap_progress import TapProgress
from kvwattd.vllm_plugin.wire import Finished, Record, SchedulerRecord

SENDERS_FORGOTTEN_S = 60.0
SENDERS_KEPT = 64  # more are no servers of one engine, but noise
STEPS_KEPT = 8192
FINISHED_KEPT = 8192
PERIOD_MEMORY_S = 30.0  # of the longest time between two records of a busy engine


@dataclass(frozen=True, slots=True)
class TapState:
    """The engine right after a step."""

    observed_s: float
    running: int
    waiting: int
    kv_usage: float


@dataclass(frozen=True, slots=True)
class TapStep:
    """One step that gave tokens to `decodes` requests, and how long it took."""

    step_s: float
    decodes: int
    prompt_tokens: int  # booked when a prompt is done, unless the server tells them step by step
    kv_usage: float
    exact: bool = True  # whether `prompt_tokens` are those of this very step


@dataclass(slots=True)
class _Sender:
    sequence: int
    tokens_total: int
    seen_s: float


class TapStream:
    """Feed `on_record` and `on_page`; read `fault`, `live`, `progress`, `period_s` and the `take_*`."""

    def __init__(self, stale_after_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._senders: dict[int, _Sender] = {}
        self._servers = 1
        self._agreement = Agreement()
        self._page: EngineSnapshot | None = None
        self._steps: deque[TapStep] = deque(maxlen=STEPS_KEPT)
        self._finished: deque[Finished] = deque(maxlen=FINISHED_KEPT)
        self._first_tokens_s: deque[float] = deque(maxlen=FINISHED_KEPT)
        self._partial = True
        self.progress = TapProgress()
        self.period_s: float | None = None  # about the longest step of late
        self.state: TapState | None = None
        self.last_s: float | None = None
        self.step_s: float | None = None
        self.records = 0
        self.lost = 0
        self.scheduler: SchedulerRecord | None = None  # newest of kvwatt's scheduler, where vLLM runs it
        self.scheduler_s = 0.0

    def on_record(self, record: Record, received_s: float) -> None:
        """A record for this instance."""
        tokens = self._progress(record, received_s)
        self.records += 1
        self._servers = record.servers
        # The sender's clock is the receiver's own on one host; a time to come means that it is not.
        sent_s = record.sent_s if received_s - SENDERS_FORGOTTEN_S < record.sent_s else received_s
        self._agreement.on_tokens(tokens, min(sent_s, received_s))
        before_s, self.last_s = self.last_s, max(self.last_s or 0.0, min(sent_s, received_s))
        self._pace(before_s, self.last_s)
        self.progress.on_record(record, self.last_s)
        if record.running is not None and record.waiting is not None and record.kv_usage is not None:
            self.state = TapState(self.last_s, record.running, record.waiting, record.kv_usage)
        # Somebody in the batch who neither decoded nor began: a prompt that takes more than this step.
        begun = record.decodes + len(record.first_tokens_s) - len(record.finished)
        partial = record.running is None or record.running > begun
        exact = record.chunk_tokens is not None or not (partial or self._partial)
        self._partial = partial
        if record.step_s and record.decodes:
            self._on_step(record, record.step_s, exact)
        self._finished.extend(record.finished)
        if record.wall_s is None:
            self._first_tokens_s.extend(record.first_tokens_s)
        for group in record.started:
            self._first_tokens_s.extend(group.ttft_s)

    def on_scheduler(self, record: SchedulerRecord, received_s: float) -> None:
        """What kvwatt's scheduler inside this engine did."""
        self.scheduler, self.scheduler_s = record, received_s

    def _pace(self, before_s: float | None, now_s: float) -> None:
        """A busy engine steps without pause, so the time between two records is a step's."""
        if before_s is None or self.state is None or self.state.running == 0:
            return
        gap_s = now_s - before_s
        faded_s = (self.period_s or 0.0) * math.exp(-gap_s / PERIOD_MEMORY_S)
        self.period_s = max(faded_s, gap_s)

    def _on_step(self, record: Record, step_s: float, exact: bool) -> None:
        self.step_s = step_s
        usage = record.kv_usage if record.kv_usage is not None else self.state and self.state.kv_usage
        chunk = record.prompt_tokens if record.chunk_tokens is None else record.chunk_tokens
        self._steps.append(TapStep(step_s, record.decodes, chunk, usage or 0.0, exact))

    def _progress(self, record: Record, received_s: float) -> int:
        """Tokens generated since the sender's record before, those of lost records included."""
        known = self._senders.get(record.sender)
        self._senders[record.sender] = _Sender(record.sequence, record.generation_tokens_total, received_s)
        if known is None or record.sequence <= known.sequence:
            since_s = received_s - SENDERS_FORGOTTEN_S
            seen = [(pid, s) for pid, s in self._senders.items() if s.seen_s > since_s]
            self._senders = dict(seen[-SENDERS_KEPT:])
            return record.generation_tokens
        self.lost += record.sequence - known.sequence - 1
        return max(record.generation_tokens_total - known.tokens_total, 0)

    def on_page(self, page: EngineSnapshot) -> None:
        """The newest metrics page: compare what was told since the one before."""
        old, self._page = self._page, page
        if self.last_s is not None and (old is None or page.observed_s > old.observed_s):
            self._agreement.on_page(old, page)

    def restart(self) -> None:
        """Another engine run: what was compared so far says nothing any more."""
        self._agreement.restart()
        self._page = None
        self._steps.clear()
        self._finished.clear()
        self._first_tokens_s.clear()
        self.progress.restart()
        self.state = None

    def fault(self) -> str | None:
        """Why the tap is not relied on for steps and the engine's state, None while it is."""
        doubt = self.doubt()
        if doubt is None and self._servers > 1:
            return f"{self._servers} API servers: each sees a part of every step"
        return doubt

    def doubt(self) -> str | None:
        """Why what it tells of single requests is not relied on; several API servers tell it together."""
        if self.last_s is None:
            return "no record has come"
        if self._agreement.agrees is None:
            return "being compared with the metrics page"
        if not self._agreement.agrees:
            return f"disagrees with the metrics page: {self._agreement}"
        page = self._page
        if page is not None and page.running > 0 and page.observed_s - self.last_s > self._stale_after_s:
            return f"no record for {page.observed_s - self.last_s:.1f} s while requests run"
        return None

    def live(self) -> TapState | None:
        """The engine's state where the tap knows it as well as the page does, or later.

        vLLM sets the page's gauges and tells the tap at the end of the same step: a page that is newer by
        less than a step tells nothing newer.
        """
        state, page = self.state, self._page
        if state is None or page is None or self.fault() is not None:
            return None
        return state if state.observed_s >= page.observed_s - (self.period_s or 0.0) else None

    def take_steps(self) -> list[TapStep]:
        """The steps since the last call."""
        steps = list(self._steps)
        self._steps.clear()
        return steps

    def take_finished(self) -> list[Finished]:
        """The requests that finished since the last call."""
        finished = list(self._finished)
        self._finished.clear()
        return finished

    def take_first_tokens_s(self) -> list[float]:
        """How long each request waited whose first token came since the last call."""
        waits, self._first_tokens_s = list(self._first_tokens_s), deque(maxlen=FINISHED_KEPT)
        return waits


def length_histograms(finished: Sequence[Finished]) -> tuple[Histogram, Histogram]:
    """Prompt and output lengths, each exactly where it lies."""
    return (
        exact_histogram(item.prompt_tokens for item in finished),
        exact_histogram(item.output_tokens for item in finished),
    )


def exact_histogram(lengths: Iterable[int]) -> Histogram:
    """A histogram with a bucket of one token around every length that occurs."""
    bounds: list[float] = []
    cumulative: list[float] = []
    counts = Counter(lengths)
    below = 0.0
    for length in sorted(counts):
        if length > 0 and (not bounds or bounds[-1] < length - 1):
            bounds.append(length - 1.0)
            cumulative.append(below)
        below += counts[length]
        bounds.append(float(length))
        cumulative.append(below)
    return Histogram((*bounds, math.inf), (*cumulative, below), float(sum(counts.elements())), below)
