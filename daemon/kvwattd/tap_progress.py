"""Every running and waiting request, reconstructed from the tap's records. Pure.

No record names a request, but together they tell all: whoever gets a first token is told with its arrival
and prompt; from then on every step gives a token to everyone who decodes; whoever finishes is told with its
arrival, by which it is known, and with its length, by which the reconstruction is checked. What follows from
vLLM's scheduler (V1): the batch is first come first served, and whoever was admitted last is preempted first.

    decodes of a step    fewer than known: the last were preempted (the KV cache is full, some wait), else
                         somebody left untold: aborted, or its record was lost. Who, is not known: everyone
                         there may be, and weighs that much less, until it finishes or all others have.
                         more than known: preempted ones are back, else somebody's start was not told: a
                         guess stands for it.
    running and waiting  what is left of them has no first token yet: known by number and, within a step,
                         by arrival; prompts are guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvwatt.state import RequestState
from kvwattd.tap_requests import Group, Known, Roll
from kvwattd.vllm_plugin.wire import Finished, Record, Started

KV_PREEMPTS = 0.75  # with the cache less full before the step, nobody is preempted
UNSEEN_S = 1.0  # a step lasts no longer: who is seen for the first time arrived at most so long before
MOST_UNSURE = 0.4  # of the batch; up to there single requests tell more than the mean of all
MOST_ERROR = 0.25
ERROR_MEMORY = 20.0  # finished requests
LEAST_FINISHED = 5.0


@dataclass(slots=True)
class Score:
    """How the reconstruction did so far."""

    matched: int = 0  # finished requests that were known
    unmatched: int = 0  # finished requests that nobody had seen start
    vanished: int = 0  # known requests that ended untold: aborted, or told in a lost record
    error_tokens: float = 0.0  # of those matched, recent mean: tokens off
    error_ratio: float = 0.0
    weight: float = 0.0

    def match(self, expected_tokens: float, tokens: int) -> None:
        self.matched += 1
        keep = self.weight = self.weight * (1.0 - 1.0 / ERROR_MEMORY) + 1.0
        off = abs(expected_tokens - tokens)
        self.error_tokens += (off - self.error_tokens) / keep
        self.error_ratio += (off / max(tokens, 1) - self.error_ratio) / keep


class TapProgress:
    """Feed `on_record`; read `requests` and `fault`."""

    def __init__(self) -> None:
        self.score = Score()
        self.roll = Roll()
        self._last: Record | None = None
        self._at_s = 0.0
        self._in_batch = 0.0  # of those without a first token
        self._vanishing = 0  # told by totals, not one by one
        self._usage = 0.0  # of the KV cache, one record ago
        self._heard = 0  # steps compared since the start
        self._lost = False  # records, since the last of them

    def restart(self) -> None:
        """Another engine run: nobody is inside any more."""
        self.roll, self._last = Roll(), None
        self._in_batch, self._vanishing, self._heard = 0.0, 0, 0

    def on_record(self, record: Record, at_s: float) -> None:
        """One step of the engine; `at_s`: when it was told, on the caller's clock."""
        before = self._last
        if before is not None and (
            record.sender != before.sender
            or record.sequence <= before.sequence
            or record.engine != before.engine
        ):
            self.restart()
            before = None
        self._last = record
        if record.wall_s is None:
            return
        steps = 1 if before is None else record.decode_steps_total - before.decode_steps_total
        whole = before is not None and record.sequence == before.sequence + 1 and steps <= 1
        if before is not None:
            told = record.finished_total - before.finished_total
            self._vanishing += max(told - len(record.finished), 0)
        if not whole:
            self._lost = True
        elif record.decodes:
            self._compare(record)
            self._heard, self._lost = self._heard + 1, False
        self.roll.advance(max(steps, 0) * _tokens_each(record))
        for group in record.started:
            self._start(group, record, at_s)
        for item in record.finished:
            self._finish(item)
        self._reconcile(record, at_s)
        self._at_s, self._usage = at_s, record.kv_usage or 0.0

    def _compare(self, record: Record) -> None:
        """Who decoded in this step against who was known to decode."""
        roll = self.roll
        back = min(record.preempted, len(roll.parked))
        roll.resume(back)
        missing = round(roll.decoding - record.decodes)
        if missing < 0:
            roll.resume(min(-missing, len(roll.parked)))
            missing = round(roll.decoding - record.decodes)
        if missing < 0:
            if not self._lost:
                roll.reappear(-missing)
            for _ in range(round(record.decodes - roll.decoding)):
                roll.guess(self._at_s, counted=self._heard > 0)
        elif missing > 0:
            self._missing(missing, record)

    def _missing(self, missing: int, record: Record) -> None:
        lost, self._vanishing = min(missing, self._vanishing), max(self._vanishing - missing, 0)
        self._vanish(lost)
        missing -= lost
        full = max(self._usage, record.kv_usage or 0.0) >= KV_PREEMPTS
        if full and (record.waiting or 0) >= len(self.roll.parked) + missing:
            self.roll.park(missing)
        else:
            self._vanish(missing)

    def _vanish(self, count: float) -> None:
        self.score.vanished += round(count)
        self.roll.vanish(count)

    def _start(self, started: Started, record: Record, at_s: float) -> None:
        """`started` lies in this step, or before it where its own record could not be sent."""
        first_s = at_s - ((record.wall_s or 0.0) - started.at_s)
        group = Group(float(started.prompt_tokens), len(started.ttft_s))
        since = max(record.decode_steps_total - started.decode_step, 0)
        for wait_s in started.ttft_s:
            self.roll.start(
                Known(
                    started.at_s - wait_s,
                    first_s - wait_s,
                    first_s,
                    group,
                    1.0 + since * _tokens_each(record),
                )
            )

    def _finish(self, item: Finished) -> None:
        found = self.roll.find(item.arrival_s, item.output_tokens)
        if found is None:
            if item.output_tokens > 0:
                self.score.unmatched += 1
            return
        if found.arrival_wall_s is not None:
            self.score.match(self.roll.tokens(found), item.output_tokens)
        self.roll.leave(found, item.prompt_tokens)

    def _reconcile(self, record: Record, at_s: float) -> None:
        """The numbers of running and waiting requests have the last word."""
        running, waiting, roll = record.running, record.waiting, self.roll
        if running is None or waiting is None:
            return
        if running + waiting == 0:
            self.roll, self._in_batch, self._vanishing = Roll(), 0.0, 0
            return
        too_many = roll.decoding + len(roll.parked) - running - waiting
        if too_many >= 1.0:
            out = min(int(too_many), len(roll.parked))
            roll.forget_parked(out)
            self._vanish(int(too_many) - out)
        self._in_batch = max(running - roll.decoding, 0.0)
        unstarted = max(round(running + waiting - roll.decoding) - len(roll.parked), 0)
        roll.expect(unstarted, max(self._at_s, at_s - UNSEEN_S))

    def fault(self) -> str | None:
        """Why requests are not known one by one, None when they are."""
        last, score, roll = self._last, self.score, self.roll
        if last is None:
            return "no record has come"
        if last.wall_s is None or last.running is None or last.waiting is None:
            return "the tap in the server does not tell when requests started: it is an older version"
        if roll.unsure > MOST_UNSURE * max(roll.decoding, 1.0):
            return f"{roll.unsure:.0f} of {roll.decoding:.0f} requests were not seen to start or to end"
        if score.weight >= LEAST_FINISHED and score.error_ratio > MOST_ERROR:
            return f"lengths of finished requests were off by {100 * score.error_ratio:.0f} %"
        return None

    def requests(self, kv_used_tokens: float, prompt_tokens: float) -> tuple[RequestState, ...]:
        """Running requests, then waiting ones; nothing while there is a fault.

        `prompt_tokens`: mean length of prompts, for those whose own is not known.
        """
        if self.fault() is not None:
            return ()
        return self.roll.states(kv_used_tokens, prompt_tokens, round(self._in_batch))


def _tokens_each(record: Record) -> float:
    """Tokens that one who decodes gets in a step; more than one with speculative decoding."""
    if not record.decodes:
        return 1.0
    return max((record.generation_tokens - len(record.first_tokens_s)) / record.decodes, 0.0)
