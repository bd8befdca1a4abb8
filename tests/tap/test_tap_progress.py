"""Running requests reconstructed from the tap's records, against the engine that told them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from tap_records import record

from kvwatt.state import EngineShape, RequestState
from kvwatt_sim.engine import Engine, Request
from kvwatt_sim.engine_tap import EngineTap
from kvwattd.tap_progress import TapProgress
from kvwattd.vllm_plugin.wire import Finished, Record, Started

ROOMY = EngineShape(block_size=16, num_blocks=20_001, max_num_seqs=64, max_num_batched_tokens=2048)
TIGHT = EngineShape(block_size=16, num_blocks=401, max_num_seqs=64, max_num_batched_tokens=1024)


@dataclass
class Driven:
    """An engine with arrivals by chance, and a progress that hears of its steps through `hear`."""

    shape: EngineShape = ROOMY
    seed: int = 0
    rate_per_s: float = 12.0
    abort_share: float = 0.0
    hear: Callable[[Record], bool] = lambda _: True
    longest: int = 400
    now_s: float = 0.0
    told: int = 0
    missed: int = 0
    preemptions: int = 0
    progress: TapProgress = field(default_factory=TapProgress)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.engine = Engine(self.shape)
        self.requests: dict[str, Request] = {}
        self.tap = EngineTap(self.engine, self.requests.__getitem__, "tiny", every_token=True)
        self.due_s = self.random.expovariate(self.rate_per_s)

    def steps(self, count: int, arrivals: bool = True) -> Iterator[Record]:
        """After each of `count` steps, the record that was told or lost."""
        for _ in range(count):
            self._arrive(arrivals)
            plan = self.engine.schedule(self.now_s)
            if plan is None:
                self.now_s = max(self.due_s, self.now_s + 0.01)
                continue
            self.preemptions += len(plan.preempted)
            self._abort()
            self.now_s += 0.01 + 2e-4 * plan.decode_batch + 3e-5 * plan.prefill_tokens
            events = self.engine.complete(plan, self.now_s)
            record = self.tap.record(plan, events, self.now_s)
            self.told += 1
            if self.hear(record):
                self.progress.on_record(record, self.now_s)
            else:
                self.missed += 1
            yield record

    def run(self, count: int, arrivals: bool = True) -> None:
        for _ in self.steps(count, arrivals):
            pass

    def _arrive(self, arrivals: bool) -> None:
        while arrivals and self.due_s <= self.now_s:
            prompt, output = self.random.randint(5, 1500), self.random.randint(1, self.longest)
            request = Request(f"r{len(self.requests)}", self.due_s, prompt, output, 2000)
            self.requests[request.request_id] = request
            self.engine.add(request)
            self.due_s += self.random.expovariate(self.rate_per_s)

    def _abort(self) -> None:
        if self.random.random() >= self.abort_share:
            return
        inside = [request.request_id for request, _ in self.engine.requests()]
        self.engine.abort(self.random.choice(inside), self.now_s)

    def truth(self) -> list[RequestState]:
        """Those that have their first token."""
        return [state for _, state in self.engine.requests() if state.output_tokens > 0]

    def found(self) -> tuple[RequestState, ...]:
        used = self.engine.kv_used_blocks * self.shape.block_size
        return self.progress.requests(used, 750.0)

    def started(self) -> list[RequestState]:
        return [state for state in self.found() if state.first_token_s is not None]


def same(ours: list[RequestState], truth: list[RequestState]) -> bool:
    """Same arrivals and output tokens, whatever the order."""
    mine = sorted((round(r.arrival_s, 4), r.output_tokens) for r in ours)
    return mine == sorted((round(r.arrival_s, 4), r.output_tokens) for r in truth)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.sampled_from([ROOMY, TIGHT]), st.floats(1.0, 40.0))
def test_without_losses_the_reconstruction_is_exact(seed: int, shape: EngineShape, rate: float) -> None:
    """After every step: each request by arrival and tokens, preempted ones too; waiting ones by number."""
    driven = Driven(shape, seed, rate)
    seen = 0
    for _ in driven.steps(400):
        ours, truth = driven.started(), driven.truth()
        assert driven.progress.fault() is None
        assert same(ours, truth)
        assert len(driven.found()) == driven.engine.running + driven.engine.waiting
        seen += len(truth)
    assert seen > 100
    assert driven.progress.score.unmatched == driven.progress.score.vanished == 0


def test_preempted_requests_are_known_as_such() -> None:
    """A full cache throws requests out of the batch: they keep their tokens and hold nothing."""
    driven = Driven(TIGHT, seed=3, rate_per_s=40.0)
    parked = 0
    for _ in driven.steps(600):
        ours = driven.started()
        assert sorted(r.output_tokens for r in ours) == sorted(r.output_tokens for r in driven.truth())
        parked += sum(r.computed_prompt_tokens == 0 for r in ours)
    assert driven.preemptions >= 4
    assert parked > 20


def test_prompts_are_known_exactly_but_for_those_that_started_together() -> None:
    """Their sum is always right, so what they hold of the cache is."""
    driven = Driven(seed=5, rate_per_s=40.0)
    alone = 0
    for _ in driven.steps(400):
        ours, truth = driven.started(), driven.truth()
        assert sum(r.prompt_tokens for r in ours) == pytest.approx(
            sum(r.prompt_tokens for r in truth), abs=40
        )
        prompts = {round(r.arrival_s, 4): r.prompt_tokens for r in truth}
        alone += sum(prompts[round(r.arrival_s, 4)] == r.prompt_tokens for r in ours)
    assert alone > 1000


def test_arrivals_of_those_without_a_token_are_never_too_late_by_more_than_a_step() -> None:
    """Waits are told as what they are, give or take the step in which they were first seen."""
    driven = Driven(TIGHT, seed=8, rate_per_s=30.0)
    waited = 0
    for _ in driven.steps(500):
        ours = sorted(s.arrival_s for s in driven.found() if s.first_token_s is None)
        truth = sorted(s.arrival_s for _, s in driven.engine.requests() if s.output_tokens == 0)
        assert len(ours) == len(truth)
        for mine, real in zip(ours, truth, strict=True):
            assert abs(mine - real) < 0.15
        waited += len(truth)
    assert waited > 200


def distance(driven: Driven, ours: list[RequestState]) -> float:
    """How far the distribution of output tokens is off, in mean tokens (Wasserstein)."""
    truth = [r.output_tokens for r in driven.truth()]
    weights = [r.weight for r in ours]
    moved = wasserstein_distance([r.output_tokens for r in ours], truth, weights)
    return float(moved) / (sum(truth) / len(truth))


def spread(driven: Driven) -> float:
    """The same for one who only knows the mean."""
    truth = [r.output_tokens for r in driven.truth()]
    mean = sum(truth) / len(truth)
    return sum(abs(tokens - mean) for tokens in truth) / len(truth) / mean


@dataclass
class Watched:
    """What a run with losses or aborts looked like, step by step."""

    distance: float
    spread: float
    weight_off: float
    faults: float


def watch(driven: Driven, steps: int = 1200) -> Watched:
    driven.run(300)
    apart, mean, off, faults, seen = [], [], [], 0, 0
    for _ in driven.steps(steps):
        seen += 1
        if driven.progress.fault() is not None:
            faults += 1
            assert driven.found() == ()
        elif driven.truth() and driven.started():
            apart.append(distance(driven, driven.started()))
            mean.append(spread(driven))
            inside = driven.engine.running + driven.engine.waiting
            off.append(abs(sum(r.weight for r in driven.found()) - inside))
    assert len(apart) > steps / 2
    return Watched(sum(apart) / len(apart), sum(mean) / len(mean), sum(off) / len(off), faults / seen)


@pytest.mark.parametrize("seed", range(4))
def test_with_one_record_in_twenty_lost_the_error_is_bounded(seed: int) -> None:
    """Lost for good, with what started and ended in them: numbers stay right, progress nearly so."""
    losing = random.Random(seed + 100)
    driven = Driven(seed=seed, rate_per_s=8.0, hear=lambda _: losing.random() > 0.05)
    seen = watch(driven)
    assert driven.missed > 50
    assert seen.faults < 0.1
    assert seen.weight_off < 0.1
    assert seen.distance < 0.2 < 0.4 < seen.spread


@pytest.mark.parametrize("seed", range(4))
def test_after_losses_it_recovers(seed: int) -> None:
    """Once every record comes again, and those inside then have finished, it is exact again."""
    losing = random.Random(seed + 200)
    lossy = [True]
    driven = Driven(seed=seed, hear=lambda _: not (lossy[0] and losing.random() < 0.05))
    driven.run(600)
    lossy[0] = False
    driven.run(900)
    for _ in driven.steps(100):
        assert same(driven.started(), driven.truth())


def test_a_daemon_that_starts_late_goes_by_aggregates_until_it_knows() -> None:
    """Beside a busy server nobody is known at first; it says so, and knows everyone in the end."""
    early = [True]
    driven = Driven(seed=11, hear=lambda _: not early[0])
    driven.run(300)
    early[0] = False
    driven.run(3)
    assert driven.progress.fault() is not None
    assert driven.found() == ()
    driven.run(900)
    assert driven.progress.fault() is None
    assert same(driven.started(), driven.truth())


@pytest.mark.parametrize("seed", range(4))
def test_aborted_requests_fade_and_are_struck_off(seed: int) -> None:
    """No record tells of an abort: the sum of weights is right at once, the set once others have finished."""
    driven = Driven(seed=seed, rate_per_s=8.0, abort_share=0.01)
    seen = watch(driven)
    assert driven.progress.score.vanished > 5
    assert seen.faults < 0.05
    assert seen.weight_off < 0.1
    assert seen.distance < 0.2 < 0.4 < seen.spread
    driven.abort_share = 0.0
    driven.run(900)
    assert same(driven.started(), driven.truth())


def test_an_empty_engine_forgets_everyone() -> None:
    """Whatever was lost, nobody is inside an engine that says so."""
    driven = Driven(seed=2, hear=lambda record: record.sequence % 7 > 0)
    driven.run(400)
    driven.run(600, arrivals=False)
    driven.hear = lambda _: True
    driven.due_s = driven.now_s
    driven.run(30)
    assert same(driven.started(), driven.truth())


def test_an_older_sender_tells_no_progress_and_that_is_said() -> None:
    """Records without the server's clock leave the aggregates."""
    old = TapProgress()
    assert old.fault() == "no record has come"
    old.on_record(record(wall_s=None), 1.0)
    assert "older version" in str(old.fault())
    assert old.requests(0.0, 100.0) == ()


def test_several_tokens_a_step_are_shared_by_all_who_decode() -> None:
    """Speculative decoding: each gets the mean of the step, and its end shows how far off that was."""
    progress, rng = TapProgress(), random.Random(4)
    tokens = [1.0] * 8
    wall_s, total = 1_700_000_000.0, 8
    begun = Started(wall_s, 0, 800, [0.5] * 8)
    known = {"generation_tokens": 8, "decodes": 0, "waiting": 0, "first_tokens_s": [0.5] * 8}
    progress.on_record(
        record(**known, running=8, wall_s=wall_s, started=[begun], generation_tokens_total=8), 0.0
    )
    for step in range(1, 201):
        got = [rng.choice((1, 2, 3, 4)) for _ in tokens]
        tokens = [have + more for have, more in zip(tokens, got, strict=True)]
        total += sum(got)
        told = {"generation_tokens": sum(got), "decodes": 8, "generation_tokens_total": total}
        at = {"sequence": step + 1, "wall_s": wall_s + 0.02 * step, "decode_steps_total": step}
        progress.on_record(record(**told, **at, running=8, waiting=0), 0.02 * step)
    found = [r.output_tokens for r in progress.requests(0.0, 100.0)]
    assert sum(found) == pytest.approx(sum(tokens), abs=8)
    assert max(abs(have - real) for have, real in zip(found, tokens, strict=True)) < 0.1 * min(tokens)


def test_lengths_that_do_not_fit_are_said_and_not_used() -> None:
    """Requests that skip steps (pipeline stages): what finishes shows it, and aggregates are used."""
    progress = TapProgress()
    wall_s, step = 1_700_000_000.0, 0
    for number in range(40):
        began = Started(wall_s + step, step, 100, [0.5])
        for k in range(100):
            step += 1
            over = Finished(1, 100, 40, e2e_s=0.0, arrival_s=began.at_s - 0.5)
            progress.on_record(
                record(
                    sequence=step,
                    wall_s=wall_s + step,
                    decode_steps_total=step,
                    decodes=1,
                    generation_tokens=1,
                    running=1,
                    waiting=0,
                    started=[began] if k == 0 else [],
                    finished=[over] if k == 99 else [],
                    finished_total=number + (k == 99),
                ),
                float(step),
            )
    assert "off by" in str(progress.fault())
    assert progress.requests(1000.0, 100.0) == ()
