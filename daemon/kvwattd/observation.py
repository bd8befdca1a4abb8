"""What is known of one engine: its newest metrics page and state, its traffic, its model's error.

Every page was validated by the parser; here it is compared with the one before (resets, changed
models, age) and folded into what is learned. Idle stretches teach nothing about step times.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from kvwatt.compiled import CompiledModel
from kvwatt.length_classes import FinishedRequest
from kvwatt.lengths import LengthModel
from kvwatt.state import EngineSnapshot, EngineState, GpuSample, Histogram, RequestState, Slo
from kvwatt.traffic import Interval, Traffic, TrafficEstimator, aged, kv_capacity_tokens
from kvwattd.holdbacks import held_back
from kvwattd.progress import Progress
from kvwattd.promises import ENDED, Judged
from kvwattd.step_check import StepCheck
from kvwattd.tap_stream import TapState, TapStep, TapStream, length_histograms
from kvwattd.telemetry.vllm_metrics import counters_reset
from kvwattd.vllm_plugin.wire import Finished

log = logging.getLogger(__name__)

Source = Literal["tap", "poll"]

# A scrape that times out may only mean a busy server: the last page stands until it is stale.
# Every other failure says that the page or the server cannot be trusted, at once.
TOLERATED_UNTIL_STALE = frozenset({"timeout"})
KV_FULL = 0.9
MIN_CHUNK_TOKENS = 16.0
DELAY_GRAIN_S = 0.05
# A page may be a step newer than the tap: requests told one by one may be off by so much of what is inside.
MOST_OFF, MOST_OFF_REQUESTS = 0.05, 1.0

# The first requests to finish are the short ones: these pseudo-requests keep the first guesses on the
# long side. Their weight fades as real ones come; before a few real ones (policy) nothing is decided.
PRIOR_OUTPUTS = Histogram((128.0, 256.0, 512.0, float("inf")), (0.5, 1.0, 2.0, 2.0), 600.0, 2.0)
PRIOR_PROMPTS = Histogram((256.0, 1024.0, 4096.0, float("inf")), (0.4, 1.2, 2.0, 2.0), 2600.0, 2.0)


def new_estimator() -> TrafficEstimator:
    """A traffic estimator that knows nothing but a pessimistic prior."""
    prompts, outputs = LengthModel(), LengthModel()
    prompts.update(PRIOR_PROMPTS)
    outputs.update(PRIOR_OUTPUTS)
    return TrafficEstimator(prompts, outputs)


class Observation:
    """Newest accepted page of one engine and what was learned from all of them."""

    def __init__(self, poll_s: float, stale_after_s: float, max_num_batched_tokens: int = 2048) -> None:
        self._max_num_batched_tokens = float(max_num_batched_tokens)
        self._poll_s = poll_s
        self._stale_after_s = stale_after_s
        self.estimator = new_estimator()
        self.check = StepCheck(self._max_num_batched_tokens)
        self.progress = Progress(stale_after_s)
        self.tap = TapStream(stale_after_s)
        self._steps: list[TapStep] = []  # of the newest interval, where the tap is relied on
        self.snapshot: EngineSnapshot | None = None
        self.first: EngineSnapshot | None = None
        self.interval: Interval | None = None
        self._traffic: tuple[tuple[int, float], Traffic | None] | None = None
        self._told: EngineState | None = None
        self._state: tuple[tuple[object, ...], EngineState] | None = None
        self.judged: Judged | None = None  # since the page before, where the tap is relied on
        self.layout: str | None = None
        self.polls = 0
        self.errors: Counter[str] = Counter()
        self.last_error: str | None = None
        self._failing: str | None = None

    def on_page(self, snapshot: EngineSnapshot, layout: str | None = None) -> None:
        """Fold in an accepted page."""
        self.polls += 1
        self._failing, self.layout = None, layout
        if self.snapshot is not None and self._is_another_run(snapshot):
            self.estimator.restart()
            self.check = StepCheck(self._max_num_batched_tokens)
            self.first = None
            self.tap.restart()
        running = self._single_requests()
        self.tap.on_page(snapshot)
        steps, finished = self.tap.take_steps(), self.tap.take_finished()
        waits_s = self.tap.take_first_tokens_s()
        self._steps = steps if self.tap.fault() is None else []
        trusted = self.tap.doubt() is None
        self.judged = Judged(waits_s, finished) if trusted else None
        if trusted:
            self.estimator.learn_requests([_learned(item) for item in finished], running)
        self.interval = self.estimator.update(snapshot, length_histograms(finished) if trusted else None)
        self.snapshot = snapshot
        self.progress.on_page(snapshot)
        self.first = self.first or snapshot

    def _single_requests(self) -> Sequence[RequestState] | None:
        """Everyone inside, None where they are not known one by one."""
        state = self.state()
        if state is None or (not state.requests and state.running + state.waiting > 0):
            return None
        return state.requests

    def rest(self) -> None:
        """The engine stops or sleeps, as intended: its last page tells nothing of what comes after.

        What was learned of traffic and of the model's error stays.
        """
        self.estimator.restart()
        self.tap.restart()
        self.progress = Progress(self._stale_after_s)
        self.snapshot = self.first = self.interval = None
        self._told = self._failing = None

    def on_period(self, poll_s: float) -> None:
        """Polls come at another period from now on."""
        self._poll_s = poll_s

    def on_model(self) -> None:
        """Another model serves: what was learned of the old one's error does not hold for it."""
        self.check = StepCheck(self._max_num_batched_tokens)

    def _is_another_run(self, snapshot: EngineSnapshot) -> bool:
        old = self.snapshot
        if old is None:
            return False
        if old.model_name != snapshot.model_name:
            log.warning(
                "served model changed from %r to %r: lengths are learned anew",
                old.model_name,
                snapshot.model_name,
            )
            self.estimator = new_estimator()
            return True
        if counters_reset(old, snapshot):
            log.warning("counters went back: the engine restarted")
            return True
        return False

    def on_error(self, cause: str, detail: str) -> None:
        """A poll failed. The log tells when the cause changes, not at every poll."""
        self.polls += 1
        self.errors[cause] += 1
        self.last_error = f"{cause}: {detail}"
        if self._failing != cause:
            log.warning("telemetry: %s", self.last_error)
        self._failing = cause

    def calibrate(
        self, compiled: CompiledModel, samples: Mapping[str, GpuSample], clock_steady: bool
    ) -> None:
        """Compare the latest busy seconds with the model, at the clock the GPUs really ran."""
        step, snapshot = self.interval, self.snapshot
        if step is None or snapshot is None or not samples or not clock_steady:
            return
        if held_back(samples.values()):
            return
        clock_mhz = min(sample.clock_mhz for sample in samples.values())
        self.check.interval(compiled, snapshot, step, self._steps, clock_mhz, self.chunk_tokens())

    def chunk_tokens(self) -> float:
        """How many tokens of a prompt are taken to be computed in one step."""
        mean = self.estimator.prompts.mean_tokens
        return min(max(mean, MIN_CHUNK_TOKENS), self._max_num_batched_tokens)

    def traffic(self, slo: Slo) -> Traffic | None:
        """Estimates as of the newest page; computed once per page and quantile."""
        quantile = slo.e2e.quantile if slo.e2e else 0.99
        key = (self.polls, quantile)
        if self._traffic is None or self._traffic[0] != key:
            self._traffic = (key, self.estimator.traffic(output_quantile=quantile))
        return self._traffic[1]

    @property
    def source(self) -> Source:
        """Where step times, finished lengths and the newest state come from."""
        return "tap" if self.tap.fault() is None else "poll"

    def on_state(self, state: EngineState) -> None:
        """The engine's state from who knows it better than pages and tap: a simulated plant."""
        self._told = state

    def state(self) -> EngineState | None:
        """The engine as of the newest that is known, with every request where the tap tells them.

        The same object as long as nothing new is known.
        """
        page, live, told = self.snapshot, self.tap.live(), self._told
        if page is None:
            return None
        if told is not None and told.observed_s >= page.observed_s:
            return told
        key = (page, live, self.tap.records)
        if self._state is None or not _same(self._state[0], key):
            self._state = (key, self._made_state(page, live))
        return self._state[1]

    def _made_state(self, page: EngineSnapshot, live: TapState | None) -> EngineState:
        usage = page.kv_usage if live is None else live.kv_usage
        running = page.running if live is None else live.running
        waiting = page.waiting if live is None else live.waiting
        kv_tokens = usage * kv_capacity_tokens(page)
        return EngineState(
            observed_s=page.observed_s if live is None else live.observed_s,
            running=running,
            waiting=waiting,
            kv_used_tokens=kv_tokens,
            requests=self._requests(running + waiting, kv_tokens),
            # Waiting 'for capacity' also means a full batch; only a full cache asks for the fastest drain.
            waiting_for_capacity=page.waiting_for_capacity if usage >= KV_FULL else 0,
        )

    def _requests(self, inside: int, kv_tokens: float) -> tuple[RequestState, ...]:
        """Everyone inside, where the tap knows them and their number is the one that is known best."""
        if self.tap.fault() is not None:
            return ()
        found = self.tap.progress.requests(kv_tokens, self.estimator.prompts.mean_tokens)
        off = abs(sum(request.weight for request in found) - inside)
        return found if off <= max(MOST_OFF * inside, MOST_OFF_REQUESTS) else ()

    def traffic_now(self, slo: Slo, now_s: float) -> Traffic | None:
        """The page's estimates aged to now; who waits, and since when, as far as is known since."""
        traffic, page, state = self.traffic(slo), self.snapshot, self.state()
        if traffic is None or page is None or state is None:
            return None
        age_s = now_s - page.observed_s
        if state.requests:
            return _waiting_as_told(traffic, state, now_s)
        seen = aged(traffic, age_s)
        if state.observed_s <= page.observed_s or state.waiting <= seen.unstarted:
            return seen
        return replace(seen, unstarted=float(state.waiting), oldest_wait_s=max(seen.oldest_wait_s, age_s))

    def delay_s(self) -> float:
        """How long after it happened something is seen at worst: a step of a tapped engine, else a poll."""
        page, told = self.snapshot, self._told
        if page is not None and told is not None and told.observed_s >= page.observed_s:
            return 0.0
        if self.tap.fault() is not None or self.tap.period_s is None:
            return self._poll_s
        return min(math.ceil(self.tap.period_s / DELAY_GRAIN_S) * DELAY_GRAIN_S, self._poll_s)

    def age_s(self, now_s: float) -> float | None:
        return now_s - self.snapshot.observed_s if self.snapshot is not None else None

    def fault(self, now_s: float) -> str | None:
        """Why the telemetry cannot be trusted, None if it can or if nothing was tried yet."""
        if self._failing is not None and self._failing not in TOLERATED_UNTIL_STALE:
            return f"telemetry: {self.last_error}"
        age_s = self.age_s(now_s)
        if age_s is None:
            return f"telemetry: {self.last_error}" if self._failing is not None else None
        if age_s > self._stale_after_s:
            return f"telemetry: newest page is {age_s:.1f} s old (limit {self._stale_after_s:g} s)"
        standstill = self.progress.fault()
        return f"telemetry: {standstill}" if standstill is not None else None

    def doubtful(self, now_s: float) -> bool:
        """Fresh enough to act on, but the latest poll failed, is overdue or shows an engine that stalls."""
        age_s = self.age_s(now_s)
        late = age_s is None or age_s > 2 * self._poll_s
        return late or self._failing is not None or self.progress.stalled


def _learned(item: Finished) -> FinishedRequest:
    return FinishedRequest(
        item.prompt_tokens, item.output_tokens, item.max_tokens, aborted=item.reason >= ENDED
    )


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return all(a is b or (type(a) is int and a == b) for a, b in zip(one, other, strict=True))


def _waiting_as_told(traffic: Traffic, state: EngineState, now_s: float) -> Traffic:
    """Requests without a first token as they are listed; the same traffic where nobody waits."""
    waiting = [request for request in state.requests if request.output_tokens == 0]
    if not waiting and traffic.unstarted == 0:
        return traffic
    oldest_s = min((request.arrival_s for request in waiting), default=now_s)
    unstarted = sum(request.weight for request in waiting)
    return replace(traffic, unstarted=unstarted, oldest_wait_s=max(now_s - oldest_s, 0.0))
