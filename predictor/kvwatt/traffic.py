"""What the traffic looks like, learned from successive snapshots: rates, lengths, who still waits.

Requests that have not arrived yet are what slows the running ones most (their prefills interleave
with everybody's decode steps), so the arrival rate and its upper bound matter more to a decision
than any other estimate here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvwatt.decaying_rate import DecayingRate
from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt.lengths import LengthModel
from kvwatt.state import EngineSnapshot, Histogram, RequestState

FloatArray = npt.NDArray[np.float64]


PROMPT_LEVELS = np.array([0.0, 0.25, 0.5, 0.75, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0])
BURST_MEMORY_S = 4.0  # about the life of a short answer while prompts are being computed
# More come than before: from so many standard deviations on it may be so, at so many it surely is; the rate
# is then that of the last few seconds, so many standard errors up.
SURGE_Z, SURGE_ERRORS = (2.0, 3.5), 1.0
# Prompt tokens come in regimes of minutes, of more requests and of longer ones: what came in the last 30 s
# foretells the tokens of the next 10 to 40 s best.
PROMPTS_S = 30.0
SHORT_LEVELS = np.array([0.02, 0.05, 0.1, 0.25, 0.5, 1.0])


class Survival(Protocol):
    """The part of a length model that a projection needs."""

    def survival(self, tokens: FloatArray) -> FloatArray: ...
    def equilibrium_survival(self, tokens: FloatArray) -> FloatArray: ...


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Estimates at one instant; upper values are one-sided bounds, not maxima."""

    arrival_per_s: float
    arrival_upper_per_s: float
    recent_per_s: float  # of the last seconds alone: noisier, and sooner aware of a change
    dispersion: float  # variance / mean of arrival counts; 1 = Poisson
    prompt_mean_tokens: float  # to be computed: prefix-cache hits are taken off
    prompt_sd_tokens: float
    prompt_quantiles_tokens: FloatArray  # at the levels PROMPT_LEVELS
    output_mean_tokens: float
    output_short_tokens: FloatArray  # at the levels SHORT_LEVELS: the short answers, hit hardest by a burst
    output_high_tokens: float  # the quantile that the E2E promise names
    unstarted: float  # requests in the server without a first token
    oldest_wait_s: float  # upper bound on how long the oldest of them has waited
    burst_tokens: float  # prompt tokens computed in the last seconds beyond what the rate explains
    exposure_s: float  # how much recent traffic the rate rests on
    finished: float  # requests whose lengths are known
    lengths: Survival | None = None
    surge: float = 0.0  # 0 to 1: how surely more come now than did before
    prompt_tokens_per_s: float | None = None  # computed of late; None: not followed

    @property
    def prompts_per_s(self) -> float:
        """Prompt tokens per second that are to be expected in the next half minute."""
        by_count = self.recent_per_s * self.prompt_mean_tokens
        if self.prompt_tokens_per_s is None:
            return by_count
        # While traffic rises beyond chance the arrivals know sooner.
        return self.prompt_tokens_per_s + self.surge * max(by_count - self.prompt_tokens_per_s, 0.0)


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two snapshots of the same engine run."""

    dt_s: float
    arrivals: float
    iterations: float
    prompt_tokens: float
    generation_tokens: float
    itl_sum_s: float
    itl_count: float
    running_mean: float
    kv_tokens_mean: float
    busy: bool  # requests were running at both ends

    @property
    def itl_mean_s(self) -> float | None:
        return self.itl_sum_s / self.itl_count if self.itl_count > 0 else None


def difference(new: Histogram, old: Histogram) -> Histogram:
    """Observations that arrived between two scrapes. Raises ValueError when the buckets changed."""
    if new.bounds != old.bounds:
        raise ValueError("histogram buckets changed between scrapes")
    counts = tuple(max(n - o, 0.0) for n, o in zip(new.cumulative, old.cumulative, strict=True))
    return Histogram(new.bounds, counts, max(new.sum - old.sum, 0.0), max(new.count - old.count, 0.0))


def interval(old: EngineSnapshot, new: EngineSnapshot) -> Interval:
    """Counter differences of two snapshots; the caller has ruled out a counter reset."""
    finished = new.requests_finished_total - old.requests_finished_total
    inside = (new.running + new.waiting) - (old.running + old.waiting)
    computed = new.prompt_tokens_total - old.prompt_tokens_total
    cached = new.prompt_tokens_cached_total - old.prompt_tokens_cached_total
    return Interval(
        dt_s=new.observed_s - old.observed_s,
        arrivals=max(inside + finished, 0.0),
        iterations=new.iterations.count - old.iterations.count,
        prompt_tokens=max(computed - cached, 0.0),
        generation_tokens=new.generation_tokens_total - old.generation_tokens_total,
        itl_sum_s=new.itl_s.sum - old.itl_s.sum,
        itl_count=new.itl_s.count - old.itl_s.count,
        running_mean=(new.running + old.running) / 2,
        kv_tokens_mean=(kv_used_tokens(new) + kv_used_tokens(old)) / 2,
        busy=new.running > 0 and old.running > 0,
    )


def kv_used_tokens(snapshot: EngineSnapshot) -> float:
    """Tokens held in the KV cache (whole blocks)."""
    return snapshot.kv_usage * kv_capacity_tokens(snapshot)


def kv_capacity_tokens(snapshot: EngineSnapshot) -> int:
    """Tokens that the KV cache holds (vLLM keeps one block back)."""
    return max(snapshot.num_blocks - 1, 1) * snapshot.block_size


class TrafficEstimator:
    """Learns the traffic of one engine from its snapshots. Time is that of the snapshots."""

    def __init__(
        self, prompts: LengthModel, outputs: LengthModel, rate_time_constant_s: float = 15.0
    ) -> None:
        self.prompts = prompts
        self.outputs = outputs
        self.by_class = ClassLengths(pooled=outputs)
        self._singly = False  # whether requests are told one by one, of late
        self._rate = DecayingRate(rate_time_constant_s)
        self._slow_rate = DecayingRate(8 * rate_time_constant_s)
        self._fast_rate = DecayingRate(rate_time_constant_s / 3)
        self._prompt_rate = DecayingRate(PROMPTS_S)
        self._previous: EngineSnapshot | None = None
        self._first_token_offset = 0.0
        self._excess = -math.inf
        self._previous_inside: int | None = None
        self._nobody_waited_s: float | None = None
        self._finished = 0.0
        self._recent_tokens = 0.0

    def restart(self) -> None:
        """The engine restarted (counters went back): forget the previous page, keep what was learned."""
        self._previous = None
        self._first_token_offset = 0.0
        self._excess, self._previous_inside = -math.inf, None
        self._nobody_waited_s = None

    def update(
        self, snapshot: EngineSnapshot, finished: tuple[Histogram, Histogram] | None = None
    ) -> Interval | None:
        """Fold in a snapshot; returns the interval since the previous one, None for the first.

        `finished`: prompt and output lengths of the requests that finished in between, where they are
        known better than from the snapshots' own histograms.
        """
        previous, self._previous = self._previous, snapshot
        vanished = self._track_vanished(snapshot)
        self._track_waiting(snapshot)
        if previous is None:
            self._learn(snapshot.prompt_lengths, snapshot.generation_lengths)
            return None
        if snapshot.observed_s <= previous.observed_s:
            return None
        step = interval(previous, snapshot)
        step = replace(step, arrivals=step.arrivals + vanished)
        fade = math.exp(-step.dt_s / BURST_MEMORY_S)
        self._recent_tokens = self._recent_tokens * fade + step.prompt_tokens
        for rate in (self._fast_rate, self._rate, self._slow_rate):
            rate.observe(step.arrivals, step.dt_s)
        self._prompt_rate.observe(step.prompt_tokens, step.dt_s)
        self._singly = self._singly and finished is not None
        self._learn(
            *finished
            or (
                difference(snapshot.prompt_lengths, previous.prompt_lengths),
                difference(snapshot.generation_lengths, previous.generation_lengths),
            )
        )
        return step

    def learn_requests(
        self, finished: Sequence[FinishedRequest], running: Sequence[RequestState] | None = None
    ) -> None:
        """Single requests, where they are told: those that finished, and all that run now (None: not known).

        Lengths by class take the place of the histogram's, on which they lean while they rest on few.
        """
        self._singly = True
        self.by_class.update(finished, None if running is None else Requests.of(running))

    def _learn(self, prompts: Histogram, outputs: Histogram) -> None:
        """Lengths of finished requests; the first page brings those since the server's start."""
        self.prompts.update(prompts)
        self.outputs.update(outputs)
        self._finished += outputs.count

    def _track_vanished(self, snapshot: EngineSnapshot) -> float:
        """Requests that a client gave up since the last page: told a first token, and no end ever.

        No page counts them. But no more requests can have begun than are inside: what is more, on two pages
        in a row (a page may be a step apart in itself), has vanished; and an empty server settles it.
        """
        inside = snapshot.running + snapshot.waiting
        excess = snapshot.ttft_s.count - snapshot.e2e_s.count - inside
        known = self._first_token_offset
        if self._previous_inside is None and inside > 0:
            self._first_token_offset = max(excess, 0.0)
        elif inside == 0:
            self._first_token_offset = excess
        else:
            self._first_token_offset = max(known, min(excess, self._excess))
        first, self._previous_inside, self._excess = self._previous_inside is None, inside, excess
        return 0.0 if first else max(self._first_token_offset - known, 0.0)

    def _track_waiting(self, snapshot: EngineSnapshot) -> None:
        if self._unstarted(snapshot) == 0 or self._nobody_waited_s is None:
            self._nobody_waited_s = snapshot.observed_s

    def _unstarted(self, snapshot: EngineSnapshot) -> float:
        """Requests without a first token: all inside minus those whose TTFT was counted and E2E not."""
        inside = snapshot.running + snapshot.waiting
        started = snapshot.ttft_s.count - snapshot.e2e_s.count - self._first_token_offset
        return float(min(max(inside - started, snapshot.waiting), inside))

    def traffic(self, output_quantile: float = 0.99, z: float = 1.28) -> Traffic | None:
        """The current estimates; None before the second snapshot."""
        snapshot = self._previous
        if snapshot is None or self._rate.exposure_s <= 0:
            return None
        unstarted = self._unstarted(snapshot)
        cached = self._cached_ratio(snapshot)
        prompt_quantiles = _quantiles(self.prompts, PROMPT_LEVELS)
        surge, recent_per_s = self._surge()
        return Traffic(
            arrival_per_s=max(recent_per_s, self._slow_rate.per_s),
            arrival_upper_per_s=self._rate.upper_per_s(z),
            recent_per_s=recent_per_s,
            dispersion=max(self._rate.dispersion, 1.0),
            prompt_mean_tokens=self.prompts.mean_tokens * (1.0 - cached),
            prompt_sd_tokens=_spread(prompt_quantiles) * (1.0 - cached),
            prompt_quantiles_tokens=prompt_quantiles,
            output_mean_tokens=max(self.outputs.mean_tokens, 1.0),
            output_short_tokens=np.maximum(_quantiles(self.outputs, SHORT_LEVELS), 1.0),
            output_high_tokens=max(self.outputs.quantile(output_quantile), 1.0),
            unstarted=unstarted,
            oldest_wait_s=self._oldest_wait_s(snapshot, unstarted),
            burst_tokens=self._burst_tokens(),
            exposure_s=self._rate.exposure_s,
            finished=self._finished,
            lengths=self.by_class if self._singly and self.by_class.known else self.outputs,
            surge=surge,
            prompt_tokens_per_s=self._prompt_rate.per_s,
        )

    def _surge(self) -> tuple[float, float]:
        """Whether more come than chance makes of the usual traffic, and the rate of late."""
        rate, low, high = self._rate.per_s, *SURGE_Z
        z = max(each.above(self._slow_rate) for each in (self._fast_rate, self._rate))
        surge = min(max((z - low) / (high - low), 0.0), 1.0)
        return surge, rate + surge * max(self._fast_rate.likely_per_s(SURGE_ERRORS) - rate, 0.0)

    def _burst_tokens(self) -> float:
        """What requests now running were stalled by already, more than the rate lets expect."""
        usual = max(self._rate.per_s, self._slow_rate.per_s) * self.prompts.mean_tokens * BURST_MEMORY_S
        return max(self._recent_tokens - usual, 0.0)

    def _oldest_wait_s(self, snapshot: EngineSnapshot, unstarted: float) -> float:
        if unstarted == 0 or self._nobody_waited_s is None:
            return 0.0
        since_empty_s = snapshot.observed_s - self._nobody_waited_s
        rate = self._rate.per_s
        # First come, first served: the oldest of n waiting arrived about n / rate ago (Little).
        by_queue_s = unstarted / rate if rate > 0 else math.inf
        return min(since_empty_s, by_queue_s)

    @staticmethod
    def _cached_ratio(snapshot: EngineSnapshot) -> float:
        if snapshot.prompt_tokens_total <= 0:
            return 0.0
        return min(max(snapshot.prompt_tokens_cached_total / snapshot.prompt_tokens_total, 0.0), 1.0)


def _quantiles(lengths: LengthModel, levels: FloatArray) -> FloatArray:
    return np.array([lengths.quantile(float(level)) for level in levels])


def _spread(quantiles: FloatArray) -> float:
    """Standard deviation of the distribution that is linear between its quantiles at PROMPT_LEVELS."""
    share, low, high = np.diff(PROMPT_LEVELS), quantiles[:-1], quantiles[1:]
    mean = float(share @ (low + high) / 2)
    square = float(share @ (low**2 + low * high + high**2) / 3)
    return math.sqrt(max(square - mean**2, 0.0))


def aged(traffic: Traffic, age_s: float) -> Traffic:
    """The same traffic seen `age_s` seconds later: whoever waited has waited that much longer."""
    if traffic.unstarted <= 0:
        return traffic
    return replace(traffic, oldest_wait_s=traffic.oldest_wait_s + max(age_s, 0.0))
