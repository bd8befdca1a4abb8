"""What would be inside the engine, and what its requests would get, at the clocks that shadow mode chooses.

In shadow mode the GPUs run at driver default: requests come and go faster than they would, so that decisions
made on what is seen would be bolder than those of control, and no promise would ever be missed. Here the same
requests are followed at the clock decided on. Everyone who decodes gets a token per engine step; counted are
the steps that were made, and those that would have been made,

    would advance by  made x T(default, batch) / T(decided, batch that would be)

with T the model's time between tokens, prompts to come included: so the stalls that were seen are kept, and
only the model's ratio is believed. Who has its first token is as far as the steps that would have been made
since; who has finished stays inside until they are as many as its answer needed. A first token comes later by
the ratio of full steps. What is known only in sums (without the tap) is not followed: there limits are
divided by the same ratios instead.

An estimate of the model throughout. No I/O and no clock reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from kvwatt.attainment import Attained, targets
from kvwatt.state import EngineSnapshot, EngineState, Metric, RequestState, Slo
from kvwattd.promises import ENDED, Judged, counted
from kvwattd.shadow.pace import Pace, Steps
from kvwattd.vllm_plugin.wire import Finished


@dataclass(frozen=True, slots=True)
class _Gone:
    """A request that has finished, and would be inside still."""

    told: Finished
    state: RequestState
    first_s: float  # of its first token as it would have been
    last_s: float
    ends_at: float  # steps at which it would finish


class ShadowEngine:
    """Feed every page while shadow mode decides; read `state` before a decision."""

    def __init__(self) -> None:
        self._steps: Steps | None = None
        self._gone: list[_Gone] = []
        self._page: EngineSnapshot | None = None
        self._seen: tuple[EngineState, EngineState] | None = None
        self.newest: Mapping[Metric, Attained] = {}  # as it would have been kept since the page before

    def restart(self) -> None:
        """Control has begun, or another engine run: what would have been inside is not."""
        self._steps = self._page = self._seen = None
        self._gone, self.newest = [], {}

    def on_page(self, page: EngineSnapshot, pace: Pace, slo: Slo, judged: Judged | None) -> None:
        """Fold in a page; `judged`: requests told one by one since the page before, None where none are."""
        before, self._page = self._page, page
        self._seen, self.newest = None, {}
        if before is None or self._steps is None or page.observed_s <= before.observed_s:
            self._steps, self._gone = Steps(page.observed_s, 1.0 / pace.would_s, pace.first_ratio), []
            return
        self._advance(self._steps, before, page, pace)
        if judged is None:
            self._gone = []
            self.newest = _scaled(before, page, pace, slo)
        else:
            self.newest = _kept(self._would(self._steps, before.observed_s, judged), slo)

    @staticmethod
    def _advance(steps: Steps, before: EngineSnapshot, page: EngineSnapshot, pace: Pace) -> None:
        dt_s, made = page.observed_s - before.observed_s, page.iterations.count - before.iterations.count
        busy = before.running > 0 and page.running > 0 and made > 0
        # An engine that rests makes no steps, while those who would still be inside go on.
        steps.add(page.observed_s, made * pace.ratio if busy else dt_s / pace.would_s, pace.first_ratio)

    def _would(self, steps: Steps, before_s: float, judged: Judged) -> Judged:
        """The same requests as they would have been judged by now."""
        last_s = (steps.now_s + before_s) / 2  # the tap tells when they finished, on another clock
        ended = [item for item in judged.finished if item.reason < ENDED]
        self._gone += [_inside(steps, item, last_s) for item in ended]
        over = [gone for gone in self._gone if gone.ends_at <= steps.now]
        self._gone = [gone for gone in self._gone if gone.ends_at > steps.now]
        ratio = steps.first_ratio(steps.now_s)
        return Judged(
            [wait * ratio for wait in judged.first_tokens_s], [_ended(steps, gone) for gone in over]
        )

    def state(self, told: EngineState) -> EngineState:
        """`told` as it would be; itself where requests are not known one by one. Same in, same out."""
        steps, known = self._steps, self._seen
        if steps is None or (not told.requests and not self._gone):
            return told
        if known is None or known[0] is not told:
            self._seen = known = (told, self._made(steps, told))
        return known[1]

    def _made(self, steps: Steps, told: EngineState) -> EngineState:
        now_s = max(told.observed_s, steps.now_s)
        alive = tuple(_slowed(steps, request, now_s) for request in told.requests)
        gone = tuple(_lasting(steps, self._gone, now_s))
        behind = sum(r.output_tokens - a.output_tokens for r, a in zip(told.requests, alive, strict=True))
        held = sum(request.prompt_tokens + request.output_tokens for request in gone)
        return replace(
            told,
            running=told.running + len(gone),
            kv_used_tokens=max(told.kv_used_tokens - behind + held, 0.0),
            requests=(*gone, *alive),
        )


def _inside(steps: Steps, item: Finished, last_s: float) -> _Gone:
    arrival_s = last_s - item.e2e_s
    first_s = _first_s(steps, arrival_s, last_s - item.decode_s)
    state = RequestState(
        arrival_s, item.prompt_tokens, item.prompt_tokens, 1, item.max_tokens, first_token_s=first_s
    )
    return _Gone(item, state, first_s, last_s, steps.at(first_s) + max(item.output_tokens - 1, 0))


def _ended(steps: Steps, gone: _Gone) -> Finished:
    end_s = min(max(steps.when(gone.ends_at), gone.last_s), steps.now_s)
    told = gone.told
    return msgspec.structs.replace(
        told,
        e2e_s=max(end_s - gone.state.arrival_s, told.e2e_s),
        decode_s=max(end_s - gone.first_s, told.decode_s),
    )


def _lasting(steps: Steps, some: list[_Gone], now_s: float) -> Iterator[RequestState]:
    for gone in some:
        output = 1 + max(round(steps.at(now_s) - steps.at(gone.first_s)), 0)
        yield replace(gone.state, output_tokens=min(output, max(gone.told.output_tokens - 1, 1)))


def _slowed(steps: Steps, request: RequestState, now_s: float) -> RequestState:
    if request.first_token_s is None:
        return request
    first_s = _first_s(steps, request.arrival_s, request.first_token_s)
    if first_s > now_s:
        return replace(request, output_tokens=0, first_token_s=None, computed_prompt_tokens=0)
    output = 1 + round(max(steps.at(now_s) - steps.at(first_s), 0.0))
    return replace(request, output_tokens=min(output, request.output_tokens), first_token_s=first_s)


def _first_s(steps: Steps, arrival_s: float, first_s: float) -> float:
    """When the first token would have come."""
    return first_s + max(first_s - arrival_s, 0.0) * (steps.first_ratio(first_s) - 1.0)


def _kept(judged: Judged, slo: Slo) -> dict[Metric, Attained]:
    found = {}
    for metric, target in targets(slo).items():
        seconds = judged.latencies_s(metric)
        found[metric] = Attained(float(sum(s <= target.limit_s for s in seconds)), float(len(seconds)))
    return found


def _scaled(before: EngineSnapshot, page: EngineSnapshot, pace: Pace, slo: Slo) -> dict[Metric, Attained]:
    """Requests known in sums: what takes so much longer keeps a limit that is so much shorter."""
    slower = {Metric.TTFT: pace.first_ratio, Metric.TBT: 1.0 / pace.ratio, Metric.E2E: 1.0 / pace.ratio}
    each = {m: counted(m, page, before, target.limit_s / slower[m]) for m, target in targets(slo).items()}
    return {metric: kept for metric, kept in each.items() if kept is not None}
