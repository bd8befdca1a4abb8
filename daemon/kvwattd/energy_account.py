"""Attributes one instance's measured energy to its requests, page by page. Pure: no I/O, no clock.

Where the tap tells of requests one by one, each gets its own joules and a record when it ends; where only the
metrics page speaks, its sums are divided by kind of work and nobody is named. Energy of a time with work that
nobody told of yet (a prompt longer than a page) waits for the page that tells; after `HOLD_S` it is unknown.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from kvwatt.attribution import MICRO, EnergyBook, Microjoules, Part, Prices, RequestEnergy, Work, prices_of
from kvwatt.energy_prior import StepEnergy
from kvwatt.state import EngineSnapshot
from kvwatt.traffic import Interval
from kvwattd.energy_followed import Followed, Told

HOLD_S = 10.0
RECENT_S = 300.0
RECORDS_KEPT = 512
LEAST_TOKENS, LEAST_REQUESTS = 1.0, 0.5  # of late: fewer say nothing
GRAINS = 4.0  # per doubling of batch or KV cache: prices are smooth, and not computed anew for less
CHUNK_TOKENS = 512.0  # at which a prompt token is priced, or the engine's budget where that is less


@dataclass(slots=True)
class Recent:
    """Sums over about the last `RECENT_S`, older ones fading."""

    busy_j: float = 0.0
    idle_j: float = 0.0
    tokens: float = 0.0
    requests: float = 0.0

    def add(self, dt_s: float, busy_j: float, idle_j: float, tokens: float, requests: float) -> None:
        keep = math.exp(-dt_s / RECENT_S)
        self.busy_j = self.busy_j * keep + busy_j
        self.idle_j = self.idle_j * keep + idle_j
        self.tokens = self.tokens * keep + tokens
        self.requests = self.requests * keep + requests

    def output_token_j(self, idle: bool) -> float | None:
        """Joules per output token, idle energy included or not; None where none came."""
        return self._joules(idle) / self.tokens if self.tokens >= LEAST_TOKENS else None

    def request_j(self, idle: bool) -> float | None:
        """Joules per finished request; None where none finished."""
        return self._joules(idle) / self.requests if self.requests >= LEAST_REQUESTS else None

    def _joules(self, idle: bool) -> float:
        return self.busy_j + (self.idle_j if idle else 0.0)


class EnergyAccount:
    """Feed `on_page` after the page was folded in; read `book`, `recent`, `records` and the totals."""

    def __init__(self, max_num_batched_tokens: int = 2048) -> None:
        self._chunk = min(CHUNK_TOKENS, float(max_num_batched_tokens))
        self._micro: dict[str, Microjoules] = {}  # by GPU: one that is new does not bring its past along
        self._pending_uj, self._pending_s = 0, 0.0
        self._followed = Followed()
        self._priced: tuple[tuple[float, ...], StepEnergy, Prices] | None = None
        self._finished: float | None = None  # by the page before
        self.book = EnergyBook()
        self.recent = Recent()
        self.records: deque[RequestEnergy] = deque(maxlen=RECORDS_KEPT)
        self.model_name = ""
        self.output_tokens = 0.0
        self.requests = 0.0  # finished, by the page
        self.attributed = 0  # requests that ended with a record

    def on_page(
        self,
        page: EngineSnapshot,
        done: Interval | None,
        energy_j: Mapping[str, float],
        clock_mhz: float,
        step: StepEnergy | None,
        told: Told | None,
    ) -> None:
        """`done`: since the page before, None at the first of an engine run. `energy_j`: of
        every GPU by UUID, only growing; empty where it cannot be read. `step`: the instance's model."""
        self.model_name = page.model_name
        for uuid, joules in energy_j.items():
            self._pending_uj += self._micro.setdefault(uuid, Microjoules()).since_last(joules)
        finished, self._finished = self._finished, page.requests_finished_total
        if done is None or finished is None:
            self._forget()
            return
        before = (self.book.total, self.book.parts[Part.IDLE])
        self._pending_s += done.dt_s
        if step is None:
            self._forget()
        else:
            self._charge(page, done, self._prices(step, clock_mhz, done), told)
        ended = max(page.requests_finished_total - finished, 0.0)
        self._count(done, ended, before)

    def _charge(self, page: EngineSnapshot, done: Interval, prices: Prices, told: Told | None) -> None:
        share = 1.0 - page.prompt_tokens_cached_total / max(page.prompt_tokens_total, 1.0)
        if told is None:
            self._stop_following()
            works = [_whole(done)]
        else:
            works = self._followed.works(told, self._chunk, min(max(share, 0.0), 1.0))
        works = [work for work in works if work.steps > 0.0]
        idle_s = self._idle_s(page, done, prices)
        if works or idle_s > 0.0:
            self.book.charge(self._taken(), works, done.iterations if works else 0.0, idle_s, prices)
        elif self._pending_s > HOLD_S:
            self.book.unknown(self._taken())
        for end in self._followed.ended():
            if end.told is None:
                self.book.abandon(end.key)
                continue
            item = end.told
            cached = item.cached_tokens or 0
            record = self.book.finish(end.key, item.prompt_tokens, item.output_tokens, cached)
            self.records.append(record)
            self.attributed += 1

    def _idle_s(self, page: EngineSnapshot, done: Interval, prices: Prices) -> float:
        """Seconds with nobody inside: none while requests run at both ends, for an engine never pauses."""
        if done.busy or page.waiting > 0:
            return 0.0
        busy_s = done.iterations * prices.step_s + done.prompt_tokens / self._chunk * prices.chunk_s
        return max(done.dt_s - busy_s, 0.0)

    def _prices(self, step: StepEnergy, clock_mhz: float, done: Interval) -> Prices:
        """Around the page's mean step; the same as before while that has hardly moved."""
        batch = done.generation_tokens / done.iterations if done.iterations > 0 else done.running_mean
        grain = tuple(round(GRAINS * math.log2(max(x, 1.0))) for x in (batch, done.kv_tokens_mean / 64))
        key = (clock_mhz, *grain)
        if self._priced is None or self._priced[0] != key or self._priced[1] != step:
            at = [2.0 ** (place / GRAINS) for place in grain]
            self._priced = (key, step, prices_of(step, clock_mhz, at[0], 64 * at[1], self._chunk))
        return self._priced[2]

    def _taken(self) -> int:
        energy, self._pending_uj, self._pending_s = self._pending_uj, 0, 0.0
        return energy

    def _forget(self) -> None:
        self.book.unknown(self._taken())
        self._stop_following()

    def _stop_following(self) -> None:
        self.book.abandon_all()
        self._followed.clear()

    def _count(self, done: Interval, ended: float, before: tuple[int, int]) -> None:
        idle = self.book.parts[Part.IDLE] - before[1]
        busy = self.book.total - before[0] - idle
        tokens = max(done.generation_tokens, 0.0)
        self.output_tokens += tokens
        self.requests += ended
        self.recent.add(done.dt_s, busy / MICRO, idle / MICRO, tokens, ended)


def _whole(done: Interval) -> Work:
    tokens = max(done.generation_tokens, 0.0)
    return Work(None, done.iterations, done.prompt_tokens, tokens, done.kv_tokens_mean * done.iterations)
