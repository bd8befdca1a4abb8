"""What the tap inside a real server would tell of a simulated engine: one record per step.

Follows vLLM 0.32 (v1/metrics/stats.py): a preemption is told when the request has its next token, an abort by
the client not at all, prompts with the first token. Several requests may start in one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from kvwatt_sim.engine import Engine, EventKind, FinishReason, Request, RequestRecord, StepPlan, TokenEvent
from kvwattd.vllm_plugin.wire import VERSION, Finished, Record, Started

WALL_S = 1_700_000_000.0  # the server's wall clock when virtual time begins
REASONS = {FinishReason.STOP: 0, FinishReason.LENGTH: 1, FinishReason.ABORT: 2}


class EngineTap:
    """Call `record` after every `Engine.complete`.

    `every_token`: the engine tells every token (`token_events`); otherwise those of decodes are taken from
    the plan, which also counts a decode that was aborted within the step. `request_of` finds a request by id.
    """

    def __init__(
        self,
        engine: Engine,
        request_of: Callable[[str], Request],
        model: str,
        instance: str = "",
        *,
        every_token: bool = False,
    ) -> None:
        self._engine, self._request_of = engine, request_of
        self._model, self._instance = model, instance
        self._every_token = every_token
        self._preempted: Counter[str] = Counter()
        self._sequence = self._generated = self._finished = self._decode_steps = 0

    def record(self, plan: StepPlan, events: Sequence[TokenEvent], end_s: float) -> Record:
        """The record of the step that ended at `end_s`; `events` are those of `complete`."""
        self._preempted.update(plan.preempted)
        first = [e.request_id for e in events if e.kind is EventKind.FIRST]
        tokens = [e.request_id for e in events if e.kind is EventKind.TOKEN]
        ended = [e.record for e in events if e.record is not None]
        decodes = len(tokens) + (0 if self._every_token else plan.decode_batch)
        preempted = sum(self._preempted.pop(name, 0) for name in (*first, *tokens))
        self._sequence += 1
        self._generated += decodes + len(first)
        self._finished += len(ended)
        self._decode_steps += decodes > 0
        return self._made(plan, end_s, first, ended, decodes, preempted)

    def _made(
        self,
        plan: StepPlan,
        end_s: float,
        first: list[str],
        ended: list[RequestRecord],
        decodes: int,
        preempted: int,
    ) -> Record:
        engine, step_s = self._engine, end_s - plan.start_s
        began = [self._request_of(name) for name in first]
        waits = [end_s - request.arrival_s for request in began]
        prompts = sum(request.prompt_tokens for request in began)
        return Record(
            version=VERSION,
            sequence=self._sequence,
            sent_s=end_s,
            sender=1,
            servers=1,
            instance=self._instance,
            model=self._model,
            engine=0,
            running=engine.running,
            waiting=engine.waiting,
            kv_usage=engine.kv_usage,
            step_s=step_s if decodes else None,
            decodes=decodes,
            itl_sum_s=step_s * decodes,
            generation_tokens=decodes + len(first),
            prompt_tokens=prompts,
            chunk_tokens=plan.prefill_tokens,
            preempted=preempted,
            generation_tokens_total=self._generated,
            finished_total=self._finished,
            dropped_total=0,
            first_tokens_s=waits,
            finished=[_finished(item) for item in ended],
            wall_s=WALL_S + end_s,
            decode_steps_total=self._decode_steps,
            started=[Started(WALL_S + end_s, self._decode_steps, prompts, waits)] if began else [],
        )


def _finished(record: RequestRecord) -> Finished:
    request = record.request
    scheduled_s = request.arrival_s if record.first_scheduled_s is None else record.first_scheduled_s
    first_s = scheduled_s if record.first_token_s is None else record.first_token_s
    last_s = first_s if record.last_token_s is None else record.last_token_s
    return Finished(
        reason=REASONS[record.reason],
        prompt_tokens=request.prompt_tokens,
        output_tokens=record.output_tokens,
        max_tokens=request.max_tokens,
        cached_tokens=record.cached_tokens,
        e2e_s=record.finished_s - request.arrival_s,
        queued_s=scheduled_s - request.arrival_s,
        prefill_s=first_s - scheduled_s,
        decode_s=last_s - first_s,
        arrival_s=WALL_S + request.arrival_s,
    )
