"""The engine's laws over random histories. Every property first shows that it was put to the test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from plant_reference import ReferenceEngine
from plant_scenarios import STEP_S, Scenario, scenarios

from kvwatt_sim.engine import Engine, EventKind, FinishReason, RequestRecord, StepPlan, TokenEvent

EXAMPLES = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@dataclass
class History:
    engine: Engine
    plans: list[StepPlan] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    aborted: list[RequestRecord] = field(default_factory=list)
    used_blocks: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)

    @property
    def records(self) -> list[RequestRecord]:
        return [event.record for event in self.events if event.record is not None]


def play(scenario: Scenario, *, token_events: bool = True) -> History:
    """Run the scenario to its end, one step per STEP_S of virtual time."""
    history = History(Engine(scenario.shape, scenario.hit_ratio, token_events=token_events))
    engine = history.engine
    pending = list(scenario.requests)
    index = 0
    while pending or engine.running or engine.waiting:
        now_s = index * STEP_S
        while pending and pending[0][0] <= index:
            engine.add(pending.pop(0)[1])
        _abort(scenario, history, index, in_step=False)
        plan = engine.schedule(now_s)
        history.used_blocks.append(engine.kv_used_blocks)
        history.running.append(engine.running)
        _abort(scenario, history, index, in_step=True)
        if plan is not None:
            history.plans.append(plan)
            history.events.extend(engine.complete(plan, now_s + STEP_S))
        index += 1
        assert index < 20_000, "the engine makes no progress"
    return history


def _abort(scenario: Scenario, history: History, index: int, *, in_step: bool) -> None:
    for step, request_id, middle in scenario.aborts:
        if step == index and middle is in_step:
            record = history.engine.abort(request_id, index * STEP_S)
            if record is not None:
                history.aborted.append(record)


def _describe(scenario: Scenario, history: History) -> Counter[str]:
    """What a history contains, to see that the properties do not hold for want of cases."""
    return Counter(
        preempted=history.engine.counters.preemptions > 0,
        chunked=any(plan.prefill_context_tokens > 0 for plan in history.plans),
        mixed=any(plan.decode_batch and plan.prefill_tokens for plan in history.plans),
        batch_full=scenario.shape.max_num_seqs in history.running,
        blocks_full=scenario.shape.num_blocks - 1 in history.used_blocks,
        hits=history.engine.counters.prefix_cache_hits > 0,
        aborted=bool(history.aborted),
        cut=history.engine.counters.finished[FinishReason.LENGTH] > 0,
        stopped=history.engine.counters.finished[FinishReason.STOP] > 0,
    )


def test_budgets_hold_and_everything_is_conserved() -> None:
    """No step exceeds a budget, no token or block is lost, and every request ends exactly once."""
    seen: Counter[str] = Counter()

    @EXAMPLES
    @given(scenarios())
    def law(scenario: Scenario) -> None:
        history = play(scenario)
        seen.update(_describe(scenario, history))
        _check_budgets(scenario, history)
        _check_conservation(scenario, history)

    law()
    assert all(seen[case] >= 20 for case in seen), seen
    assert len(seen) == 9


def _check_budgets(scenario: Scenario, history: History) -> None:
    shape = scenario.shape
    assert all(1 <= plan.scheduled_tokens <= shape.max_num_batched_tokens for plan in history.plans)
    assert max(history.running) <= shape.max_num_seqs
    assert max(history.used_blocks) <= shape.num_blocks - 1
    assert history.engine.kv_used_blocks == 0
    assert history.engine.kv_usage == 0.0


def _check_conservation(scenario: Scenario, history: History) -> None:
    counters = history.engine.counters
    records = history.records + history.aborted
    assert sorted(r.request.request_id for r in records) == sorted(r.request_id for _, r in scenario.requests)
    tokens = [event for event in history.events if event.kind is not EventKind.FINISHED]
    assert counters.generation_tokens == len(tokens) == sum(record.output_tokens for record in records)
    per_request = Counter(event.request_id for event in tokens)
    for record in records:
        assert per_request[record.request.request_id] == record.output_tokens
    for record in history.records:
        assert record.output_tokens == record.request.total_output_tokens
    began = [record.request for record in records if record.first_token_s is not None]
    assert counters.prompt_tokens == sum(request.prompt_tokens for request in began)
    assert counters.computed_tokens == sum(plan.scheduled_tokens for plan in history.plans)
    assert sum(counters.finished.values()) == len(records)
    if not counters.preemptions and not history.aborted:
        # Every prompt once less its hits, every output token but the last once.
        once = sum(r.request.prompt_tokens - r.cached_tokens + r.output_tokens - 1 for r in records)
        assert counters.computed_tokens == once


def test_first_come_first_served() -> None:
    """Requests are first scheduled in the order of their arrival, and their times are in order."""
    overtaken = 0

    @EXAMPLES
    @given(scenarios())
    def law(scenario: Scenario) -> None:
        nonlocal overtaken
        history = play(scenario)
        order = {request.request_id: place for place, (_, request) in enumerate(scenario.requests)}
        records = sorted(history.records + history.aborted, key=lambda r: order[r.request.request_id])
        starts = [record.first_scheduled_s for record in records if record.first_scheduled_s is not None]
        assert starts == sorted(starts)
        overtaken += len(set(starts)) > 1
        for record in history.records:
            assert record.first_scheduled_s is not None
            assert record.first_token_s is not None
            assert record.last_token_s == record.finished_s
            assert record.request.arrival_s <= record.first_scheduled_s < record.first_token_s
            assert record.first_token_s <= record.finished_s

    law()
    assert overtaken >= 100


def test_agrees_with_the_plain_loop() -> None:
    """Step by step the engine plans and generates what vLLM's loop, written plainly, does."""
    preemptions = 0

    @EXAMPLES
    @given(scenarios())
    def law(scenario: Scenario) -> None:
        nonlocal preemptions
        preemptions += _compare(scenario)

    law()
    assert preemptions >= 100


def _compare(scenario: Scenario) -> int:
    engine = Engine(scenario.shape, scenario.hit_ratio)
    reference = ReferenceEngine(scenario.shape, scenario.hit_ratio)
    pending = list(scenario.requests)
    index = 0
    while pending or engine.running or engine.waiting:
        while pending and pending[0][0] <= index:
            _, request = pending.pop(0)
            engine.add(request)
            reference.add(request)
        plan, expected = engine.schedule(float(index)), reference.schedule()
        if plan is not None:
            chunks = expected.prefill
            assert (plan.decode_batch, plan.kv_tokens) == (expected.decode_batch, expected.kv_tokens)
            assert plan.prefill_ids == tuple(request_id for request_id, _, _ in chunks)
            assert plan.prefill_tokens == sum(tokens for _, tokens, _ in chunks)
            assert plan.preempted == tuple(expected.preempted)
            pairs = plan.prefill_tokens * (plan.prefill_context_tokens + plan.prefill_tokens / 2)
            assert abs(pairs - sum(n * (context + n / 2) for _, n, context in chunks)) < 1e-6
        assert engine.kv_used_blocks == scenario.shape.num_blocks - 1 - reference.free
        for step, request_id, middle in scenario.aborts:
            if middle and step == index:
                engine.abort(request_id, float(index))
                reference.abort(request_id)
        if plan is not None:
            events = engine.complete(plan, index + 1.0)
            tokens, finished = reference.complete()
            got = [event.request_id for event in events if event.kind is not EventKind.FINISHED]
            assert sorted(got) == sorted(tokens)
            assert sorted(e.request_id for e in events if e.record is not None) == sorted(finished)
        index += 1
    return engine.counters.preemptions


@EXAMPLES
@given(scenarios())
def test_same_history_same_result(scenario: Scenario) -> None:
    """Two engines given the same calls do the same, with or without token events."""
    first, second, quiet = play(scenario), play(scenario), play(scenario, token_events=False)
    assert first.plans == second.plans == quiet.plans
    assert first.events == second.events
    assert first.records == quiet.records
    assert first.engine.counters == quiet.engine.counters
