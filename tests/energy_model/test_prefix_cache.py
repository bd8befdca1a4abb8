"""Prefix caching in the simulated engine: who finds what, what it costs, and that no block is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.state import EngineShape
from kvwatt_sim.cards import load
from kvwatt_sim.engine import Engine, Request
from kvwatt_sim.prefix.cache import PrefixCache
from kvwatt_sim.prefix.conversations import Talk, conversations, dispersion, volatile
from kvwatt_sim.prefix.engine import PrefixEngine
from kvwatt_sim.prefix.mooncake import load_hashed
from kvwatt_sim.prefix.serving import serve
from kvwatt_sim.traces import TraceError

SHAPE = EngineShape(block_size=16, num_blocks=201, max_num_seqs=8, max_num_batched_tokens=256)


def run(engine: PrefixEngine) -> int:
    """Until nobody is left, the laws checked at every step; returns how many tokens were computed."""
    now_s, budget = 0.0, engine.shape.num_blocks - 1
    while (plan := engine.schedule(now_s)) is not None:
        assert 0 <= engine.cache.idle <= budget - engine.kv_used_blocks
        now_s += 1.0
        engine.complete(plan, now_s)
        assert 0 <= engine.kv_used_blocks <= budget
    assert engine.kv_used_blocks == 0
    assert engine.cache.held == 0
    assert engine.cache.idle <= budget
    return engine.counters.computed_tokens


def ask(engine: PrefixEngine, name: str, prompt: int, owner: int, output: int = 4) -> None:
    engine.add_hashed(Request(name, 0.0, prompt, output), lambda place: owner * 1000 + place)


def test_the_second_request_finds_the_firsts_blocks() -> None:
    """All full blocks of the prompt but the one with its last token; other prompts find nothing."""
    engine = PrefixEngine(SHAPE)
    ask(engine, "a", 160, 1)
    run(engine)
    ask(engine, "b", 160, 1)
    ask(engine, "c", 160, 2)
    run(engine)
    assert engine.hit_tokens == 9 * 16
    assert engine.asked_tokens == 480


def test_blocks_are_shared_while_they_are_in_use() -> None:
    """Eight requests of one long prompt fit where three without sharing would not."""
    engine = PrefixEngine(SHAPE)
    ask(engine, "first", 1600, 1, 2)
    run(engine)
    for number in range(8):
        ask(engine, f"r{number}", 1616, 1, 8)
    plan = engine.schedule(0.0)
    assert plan is not None
    assert engine.running == 8
    assert engine.kv_used_blocks < 130
    engine.complete(plan, 1.0)
    run(engine)


def test_what_is_not_used_longest_goes_first_and_a_limit_holds() -> None:
    """Of three prompts the one asked for last is found; with a limit of none nothing is."""
    engine = PrefixEngine(SHAPE)
    for owner in (1, 2, 3):
        ask(engine, f"a{owner}", 1600, owner)
        run(engine)
    found = {owner: engine.cache.match([owner * 1000 + place for place in range(100)]) for owner in (1, 2, 3)}
    assert found[3] == 100 > found[2] > 0 == found[1]
    engine.cache.limit = 0
    engine.cache.trim(200)
    assert engine.cache.idle == 0


def test_an_answer_is_a_prefix_of_the_next_turn() -> None:
    """What was generated is found too."""
    engine = PrefixEngine(SHAPE)
    ask(engine, "turn1", 160, 1, 65)
    run(engine)
    ask(engine, "turn2", 320, 1)
    run(engine)
    assert engine.hit_tokens == 14 * 16  # 160 + 64 cached tokens: the last one is never computed


requests = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 60), st.integers(0, 4)), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(requests, st.sampled_from([None, 0, 20]), st.sampled_from([61, 201]))
def test_no_block_is_lost_whatever_is_asked(
    asked: list[tuple[int, int, int]], limit: int | None, blocks: int
) -> None:
    """Shared, evicted, preempted: in the end all are free, everybody has all tokens, and nothing was computed
    that a plain engine would not have computed."""
    shape = EngineShape(16, blocks, 6, 128)
    engine, plain = PrefixEngine(shape, limit), Engine(shape)
    for number, (prompt, output, owner) in enumerate(asked):
        ask(engine, f"r{number}", prompt, owner, output)
        plain.add(Request(f"r{number}", 0.0, prompt, output))
    computed = run(engine)
    finished = sum(engine.counters.finished.values())
    assert finished == len(asked)
    assert engine.counters.generation_tokens == sum(output for _, output, _ in asked)
    needed = sum(prompt + output - 1 for prompt, output, _ in asked)
    assert computed >= needed - engine.hit_tokens
    if not engine.counters.preemptions:
        assert computed == needed - engine.hit_tokens


def test_with_nothing_shared_or_kept_it_is_the_plain_engine() -> None:
    """Step by step the same plans, preemptions included."""
    plain, cached = Engine(SHAPE, token_events=False), PrefixEngine(SHAPE, keep_blocks=0)
    for number in range(30):
        request = Request(f"r{number}", 0.0, 50 + 13 * number, 5 + number)
        plain.add(request)
        cached.add_hashed(request, lambda place, number=number: number * 1000 + place)
    now_s = 0.0
    while (one := plain.schedule(now_s)) is not None:
        other = cached.schedule(now_s)
        assert other == one
        now_s += 1.0
        plain.complete(one, now_s)
        cached.complete(other, now_s)
    assert cached.schedule(now_s) is None


class Keep:
    """Top clock, so many blocks kept that nobody uses."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def act(self, now_s: float, engine: PrefixEngine, arrivals: int) -> int:
        engine.cache.limit = self.limit
        return 2520


def test_hits_and_joules_saved_grow_with_what_is_kept() -> None:
    """The same conversations, more and more blocks kept that nobody uses: each hit is a prompt token less to
    compute, and energy falls."""
    card = load("l20")
    shape = card.engine_shape(num_blocks=8001)
    traffic = conversations(volatile(0.03, 0.1, 200.0), 400.0, 100)
    runs = [serve(card, shape, traffic, Keep(limit), 460.0) for limit in (0, 500, 2000, None)]
    hits = [result.hit_ratio for result in runs]
    assert hits == sorted(hits)
    assert hits[-1] > hits[0] + 0.3
    joules = [result.energy_j for result in runs]
    assert joules == sorted(joules, reverse=True)
    assert joules[-1] < 0.97 * joules[0]
    tokens = {result.output_tokens for result in runs}
    assert len(tokens) == 1
    for result in runs:
        assert result.prefill_tokens + result.hit_tokens == result.asked_tokens or result.preemptions


def test_conversations_carry_their_past_and_are_the_same_for_the_same_seed() -> None:
    """Within a conversation every prompt begins with the one before and its answer."""
    talk = Talk(turns=5.0)
    traffic = conversations(volatile(0.1, 0.4, 100.0), 600.0, 7, talk)
    assert traffic == conversations(volatile(0.1, 0.4, 100.0), 600.0, 7, talk)
    assert [t.request.arrival_s for t in traffic] == sorted(t.request.arrival_s for t in traffic)
    by_talk: dict[int, list[int]] = {}
    for item in traffic:
        by_talk.setdefault(item.conversation, []).append(item.request.prompt_tokens)
    several = [lengths for lengths in by_talk.values() if len(lengths) > 1]
    assert len(several) > 10
    assert all(lengths == sorted(lengths) for lengths in several)
    assert dispersion(volatile(0.1, 0.4, 100.0), 600.0) == pytest.approx(0.742, abs=0.01)


def test_mooncakes_blocks_are_found_where_its_hashes_are_equal(tmp_path: Path) -> None:
    """Two requests with one common block of 512 tokens share 32 blocks of 16."""
    rows = [
        {"timestamp": 0, "input_length": 1024, "output_length": 4, "hash_ids": [7, 8]},
        {"timestamp": 1000, "input_length": 1100, "output_length": 4, "hash_ids": [7, 9, 10]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    engine = PrefixEngine(EngineShape(16, 1001, 8, 256))
    for number, item in enumerate(load_hashed(path)):
        told = item.request
        engine.add_hashed(Request(f"r{number}", 0.0, told.prompt_tokens, told.output_tokens), item.hashes(16))
        run(engine)
    assert engine.hit_tokens == 512
    with pytest.raises(ValueError, match="block_size"):
        load_hashed(path)[0].hashes(48)
    path.write_text(json.dumps(rows[0] | {"hash_ids": [-1]}))
    with pytest.raises(TraceError, match="line 1: hash_ids"):
        load_hashed(path)


def test_the_cache_counts_its_users() -> None:
    """Two users, one leaves: still in use; both gone: kept until there is no room."""
    cache = PrefixCache()
    assert cache.register(1)
    assert not cache.register(1)
    assert cache.acquire([1]) == 0
    assert cache.release([1]) == 1
    assert cache.release([1]) == 0
    assert (cache.held, cache.idle) == (0, 1)
    assert cache.acquire([1]) == 1
    cache.release([1])
    cache.trim(0)
    assert (cache.idle, cache.evicted) == (0, 1)
