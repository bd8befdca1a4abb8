"""The engine by example: who gets which tokens in which step, and what bad calls are answered."""

from __future__ import annotations

import pytest

from kvwatt.state import EngineShape
from kvwatt_sim.engine import Engine, EventKind, FinishReason, Request, StepPlan, TokenEvent


def shape(num_blocks: int = 101, seqs: int = 8, budget: int = 64) -> EngineShape:
    return EngineShape(block_size=4, num_blocks=num_blocks, max_num_seqs=seqs, max_num_batched_tokens=budget)


def step(engine: Engine, now_s: float = 0.0) -> tuple[StepPlan, tuple[TokenEvent, ...]]:
    plan = engine.schedule(now_s)
    assert plan is not None
    return plan, engine.complete(plan, now_s + 1.0)


def test_first_token_comes_with_the_end_of_the_prefill() -> None:
    """A prompt longer than the budget takes several steps and yields its first token in the last."""
    engine = Engine(shape(budget=64))
    engine.add(Request("a", 0.0, 150, 2))
    chunks = []
    for now_s in (0.0, 1.0):
        plan, events = step(engine, now_s)
        chunks.append((plan.prefill_tokens, plan.prefill_context_tokens))
        assert events == ()
    plan, events = step(engine, 2.0)
    chunks.append((plan.prefill_tokens, plan.prefill_context_tokens))
    assert chunks == [(64, 0.0), (64, 64.0), (22, 128.0)]
    assert events == (TokenEvent("a", 3.0, EventKind.FIRST),)
    plan, events = step(engine, 3.0)
    assert (plan.decode_batch, plan.kv_tokens, plan.prefill_tokens) == (1, 151, 0)
    assert [event.kind for event in events] == [EventKind.TOKEN, EventKind.FINISHED]


def test_decodes_come_before_prefills() -> None:
    """A running decode keeps its token and the prompt chunk gets what is left of the budget."""
    engine = Engine(shape(budget=16))
    engine.add(Request("a", 0.0, 8, 20))
    step(engine)
    engine.add(Request("b", 1.0, 40, 2))
    plan, events = step(engine, 1.0)
    assert (plan.decode_batch, plan.prefill_tokens, plan.prefill_ids) == (1, 15, ("b",))
    assert [event.request_id for event in events] == ["a"]


def test_the_last_of_the_batch_is_preempted_and_comes_back_first() -> None:
    """When blocks run out the youngest request is thrown out, ahead of the queue, and recomputed."""
    engine = Engine(shape(num_blocks=9))  # 8 blocks = 32 tokens
    engine.add(Request("old", 0.0, 12, 12))
    engine.add(Request("young", 0.0, 14, 6))
    engine.add(Request("queued", 0.0, 12, 1))
    first, _ = step(engine)
    assert first.prefill_ids == ("old", "young")
    preempted_at: tuple[str, ...] | None = None
    order: list[str] = []
    while (plan := engine.schedule(1.0)) is not None:
        if plan.preempted and preempted_at is None:
            preempted_at = plan.preempted
            assert plan.prefill_tokens == 0  # nothing is admitted in such a step
        order.extend(plan.prefill_ids)
        engine.complete(plan, 2.0)
    assert preempted_at == ("young",)
    assert order == ["young", "queued"]
    assert engine.counters.preemptions == 1
    assert engine.counters.prompt_tokens == 12 + 14 + 12  # counted once in spite of the recomputation


def test_a_recomputed_request_prefills_its_output_as_well() -> None:
    """Tokens generated before a preemption are part of the prompt after it and are not generated again."""
    engine = Engine(shape(num_blocks=9))
    engine.add(Request("old", 0.0, 12, 12))
    engine.add(Request("young", 0.0, 14, 6))
    tokens = {"old": 0, "young": 0}
    recomputed = None
    while (plan := engine.schedule(0.0)) is not None:
        if plan.prefill_ids == ("young",):
            recomputed = plan.prefill_tokens
            assert recomputed == 14 + tokens["young"]
        for event in engine.complete(plan, 1.0):
            tokens[event.request_id] += event.kind is not EventKind.FINISHED
    assert recomputed is not None
    assert tokens == {"old": 12, "young": 6}


def test_prefix_hits_are_whole_blocks_and_never_the_whole_prompt() -> None:
    """With every block in the prefix cache the last tokens of a prompt are still computed."""
    engine = Engine(shape(), prefix_hit_ratio=1.0)
    engine.add(Request("a", 0.0, 16, 1))
    plan, events = step(engine)
    assert (plan.prefill_tokens, plan.prefill_context_tokens) == (4, 12.0)
    assert events[-1].record is not None
    assert events[-1].record.cached_tokens == 12
    counters = engine.counters
    assert (counters.prefix_cache_queries, counters.prefix_cache_hits) == (16, 12)
    assert (counters.prompt_tokens, counters.prompt_tokens_cached) == (16, 12)


@pytest.mark.parametrize(
    ("output", "maximum", "tokens", "reason"),
    [
        (3, None, 3, FinishReason.STOP),
        (3, 9, 3, FinishReason.STOP),
        (9, 3, 3, FinishReason.LENGTH),
        (3, 3, 3, FinishReason.LENGTH),
        (1, 1, 1, FinishReason.LENGTH),
    ],
)
def test_finish_reason(output: int, maximum: int | None, tokens: int, reason: FinishReason) -> None:
    """A request ends by itself with `stop`, or at max_tokens with `length`."""
    engine = Engine(shape())
    engine.add(Request("a", 0.0, 5, output, maximum))
    records = []
    while (plan := engine.schedule(0.0)) is not None:
        records += [event.record for event in engine.complete(plan, 1.0) if event.record]
    assert [(record.output_tokens, record.reason) for record in records] == [(tokens, reason)]
    assert engine.counters.finished[reason] == 1


def test_abort_in_the_middle_of_a_step() -> None:
    """A request aborted while its step runs yields nothing more, and its blocks are free at once."""
    engine = Engine(shape())
    engine.add(Request("a", 0.0, 9, 20))
    engine.add(Request("b", 0.0, 9, 20))
    step(engine)
    plan = engine.schedule(1.0)
    assert plan is not None
    before = engine.kv_used_blocks
    record = engine.abort("a", 1.5)
    assert record is not None
    assert (record.reason, record.output_tokens) == (FinishReason.ABORT, 1)
    assert engine.kv_used_blocks == before - 3
    assert [event.request_id for event in engine.complete(plan, 2.0)] == ["b"]
    assert engine.abort("a", 2.0) is None
    assert engine.counters.generation_tokens == 3


def test_nothing_to_do() -> None:
    """An engine without requests plans no step."""
    engine = Engine(shape())
    assert engine.schedule(0.0) is None
    assert engine.counters.steps == 0


def test_steps_are_taken_in_turn() -> None:
    """A step is completed once, and before the next is planned."""
    engine = Engine(shape())
    engine.add(Request("a", 0.0, 5, 5))
    plan = engine.schedule(0.0)
    assert plan is not None
    with pytest.raises(RuntimeError, match="step 0 is not completed"):
        engine.schedule(0.5)
    engine.complete(plan, 1.0)
    with pytest.raises(RuntimeError, match="step 0 is not the one"):
        engine.complete(plan, 1.0)


def test_requests_that_can_never_run_are_refused() -> None:
    """A request larger than the whole KV cache, or already known, is refused with its name."""
    engine = Engine(shape(num_blocks=5))  # 16 tokens
    engine.add(Request("fits", 0.0, 10, 7))
    with pytest.raises(ValueError, match=r"'large' needs 17 tokens of KV cache; the engine has 16"):
        engine.add(Request("large", 0.0, 10, 8))
    with pytest.raises(ValueError, match="'fits': already in the engine"):
        engine.add(Request("fits", 0.0, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0, 1, None), "prompt_tokens = 0"),
        ((0.0, 1, 0, None), "output_tokens = 0"),
        ((0.0, 1, 1, 0), "max_tokens = 0"),
        ((float("nan"), 1, 1, None), "arrival_s = nan"),
    ],
)
def test_nonsense_requests(arguments: tuple[float, int, int, int | None], message: str) -> None:
    """Numbers that no request can have are refused by name and value."""
    with pytest.raises(ValueError, match=message):
        Request("a", *arguments)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_nonsense_hit_ratio(ratio: float) -> None:
    """A prefix-hit ratio outside 0..1 is refused."""
    with pytest.raises(ValueError, match="prefix_hit_ratio"):
        Engine(shape(), prefix_hit_ratio=ratio)


def test_a_budget_below_the_batch_is_refused() -> None:
    """Every running decode must fit into a step, as vLLM demands."""
    with pytest.raises(ValueError, match="max_num_batched_tokens = 4"):
        Engine(shape(seqs=8, budget=4))
