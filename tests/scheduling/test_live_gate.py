"""Who starts inside vLLM, and who waits: the pure part of kvwatt's scheduler, on requests like vLLM's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.scheduling.worth import LEAST_HORIZON, MOST_HORIZON, Seat, horizon_steps
from kvwattd.vllm_plugin import ageing, versions
from kvwattd.vllm_plugin.gate import Gate, View
from kvwattd.vllm_plugin.ghost import Ghost
from kvwattd.vllm_plugin.lengths import MOST_KNOWN, Lengths
from kvwattd.vllm_plugin.promises import breaks
from kvwattd.vllm_plugin.told import Lengths as ToldLengths
from kvwattd.vllm_plugin.told import Promises, StepCost, Told

SIZE = 16


@dataclass
class Sampling:
    extra_args: dict[str, Any] | None = None


@dataclass
class Held:
    """What is read of vLLM's requests."""

    request_id: str
    num_tokens: int
    num_output_tokens: int = 0
    max_tokens: int = 1024
    arrival_time: float = 0.0
    priority: int = 0
    num_preemptions: int = 0
    sampling_params: Sampling = field(default_factory=Sampling)

    @property
    def num_computed_tokens(self) -> int:
        return self.num_tokens


def made(number: int, prompt: int, output: int = 0, **more: Any) -> Held:
    return Held(str(number), prompt + output, output, **more)


def blocks(requests: list[Held]) -> int:
    return sum(-(-r.num_tokens // SIZE) for r in requests)


def view(running: list[Held], waiting: list[Held], pool: int, **more: Any) -> View:
    return View(running, waiting, pool, max(pool - blocks(running), 0), SIZE, **more)


some = st.builds(
    lambda n, prompt, output: made(n, prompt, output), st.integers(), st.integers(1, 500), st.integers(0, 500)
)


@given(st.lists(some, min_size=1, max_size=20), st.lists(some, max_size=20), st.integers(0, 2000))
def test_more_memory_never_admits_fewer(running: list[Held], waiting: list[Held], spare: int) -> None:
    """Monotone in the pool, and never more than wait."""
    pool = blocks(running) + spare
    few = Gate().admissible(view(running, waiting, pool), None, 0.0)
    many = Gate().admissible(view(running, waiting, 2 * pool), None, 0.0)
    assert 0 <= few <= many <= len(waiting)


@given(st.lists(some, min_size=1, max_size=10), st.lists(some, max_size=10))
def test_a_cache_without_pressure_holds_nobody(running: list[Held], waiting: list[Held]) -> None:
    """Where all fit for the horizon, everybody starts."""
    pool = blocks([*running, *waiting]) + 20 * (256 // SIZE + 1)
    assert Gate().admissible(view(running, waiting, pool), None, 0.0) == len(waiting)


@given(st.lists(some, min_size=1, max_size=20), st.integers(1, 400))
def test_an_empty_engine_takes_whoever_comes(waiting: list[Held], pool: int) -> None:
    """Waiting would never end."""
    assert Gate().admissible(view([], waiting, pool), None, 0.0) == len(waiting)


def test_who_would_be_preempted_soon_is_held_and_who_lives_the_horizon_starts() -> None:
    """Ten requests fill the cache in 20 steps; one of them leaves before that where lengths say so."""
    running = [made(n, 100, 50) for n in range(10)]
    waiting = [made(99, 40)]
    pool = blocks([*running, *waiting]) + 10 * 20 // SIZE
    gate = Gate(fixed_steps=32)
    assert gate.admissible(view(running, waiting, pool), None, 0.0) == 0
    assert gate.totals.steps["overflow"] == 1
    assert gate.ghost.requests == 1
    assert Gate(fixed_steps=8).admissible(view(running, waiting, pool), None, 0.0) == 1
    short = Gate(fixed_steps=32)
    for n in range(20):
        short.lengths.finished(str(n), 55)
    assert short.admissible(view(running, waiting, pool), None, 0.0) == 1


def test_a_verdict_stands_for_a_few_steps_and_falls_when_somebody_leaves() -> None:
    """What is reckoned anew in every step would cost more than it is worth."""
    running = [made(n, 100, 50) for n in range(10)]
    waiting, gate = [made(99, 40)], Gate(fixed_steps=64)
    pool = blocks([*running, *waiting]) + 4
    assert gate.admissible(view(running, waiting, pool), None, 0.0) == 0
    assert gate.admissible(view(running, waiting, 100 * pool), None, 0.0) == 0
    assert gate.admissible(view(running[1:], waiting, 100 * pool), None, 0.0) == 1


def test_shared_prefixes_count_once() -> None:
    """Twenty requests over one prompt hold a fifth of the blocks that they would alone: more fit."""
    running = [made(n, 160, 10) for n in range(20)]
    waiting = [made(99, 160)]
    pool, used = 160, blocks(running) // 5
    shared = View(running, waiting, pool, pool - used, SIZE)
    alone = View(running, waiting, pool, 0, SIZE)
    assert Gate(fixed_steps=32).admissible(shared, None, 0.0) == 1
    assert Gate(fixed_steps=32).admissible(alone, None, 0.0) == 0


def test_nobody_is_held_for_those_of_lower_priority() -> None:
    """By priority, vLLM preempts the least important: only the others have to fit."""
    running = [made(n, 100, 50, priority=5) for n in range(10)]
    pool = blocks(running) + 8
    urgent, equal = made(98, 40, priority=0), made(99, 40, priority=5, arrival_time=1.0)
    for waiting, admitted in ((urgent, 1), (equal, 0)):
        seen = view(running, [waiting], pool, by_priority=True)
        assert Gate(fixed_steps=64).admissible(seen, None, 0.0) == admitted


def test_the_budget_bounds_blocks_and_sequences() -> None:
    """Told by the daemon; without it both may start."""
    running, waiting = [made(n, 100, 50) for n in range(4)], [made(98, 40), made(99, 40)]
    seen = view(running, waiting, 1000)
    assert Gate().admissible(seen, None, 0.0) == 2
    assert Gate().admissible(seen, Told("m", max_seqs=5), 0.0) == 1
    gate = Gate()
    assert gate.admissible(seen, Told("m", budget_blocks=blocks(running) + 1), 0.0) == 0
    assert gate.totals.steps["budget"] == 1


def test_lengths_are_the_daemons_while_it_tells_them() -> None:
    """By class of prompt; without a message, by what finished here; beyond both, as much again."""
    lengths = Lengths()
    told = Told("m", lengths=[ToldLengths([10, 20, 30], 100), ToldLengths([500, 600, 700])])
    assert lengths.expected(None, 50, 0, 1000, told) == 20
    assert lengths.expected(None, 200, 0, 1000, told) == 600
    assert lengths.expected(None, 200, 650, 1000, told) == 50
    assert lengths.expected(None, 200, 0, 100, told) == 100
    assert lengths.expected(None, 200, 900, 10_000, told) == 900
    for n in range(40):
        lengths.finished(str(n), 77)
    assert lengths.expected(None, 50, 0, 1000, None) == 77
    assert lengths.cap(None) == 77


def test_nothing_grows_where_no_end_is_told() -> None:
    """The one known longest is forgotten, and reckoned anew."""
    lengths = Lengths()
    for number in range(MOST_KNOWN + 50):
        request = made(number, 10)
        lengths.left(request, None)
        lengths.drawn(request, None)
    assert len(lengths._ends) == len(lengths._drawn) == MOST_KNOWN
    assert lengths.left(made(0, 10), None) >= 1


def test_a_hint_goes_before_both_until_it_is_outlived() -> None:
    """Nonsense is no hint."""
    lengths = Lengths()
    hinted = made(1, 10, sampling_params=Sampling({"output_tokens": 33}))
    assert lengths.left(hinted, None) == 33
    hinted.num_output_tokens, hinted.num_tokens = 33, 43
    assert lengths.left(hinted, None) > 1
    for nonsense in (True, "9", -1, 0, float("nan"), 1 << 40, None):
        assert ageing.hint_tokens(made(2, 1, sampling_params=Sampling({"output_tokens": nonsense}))) is None


def test_the_horizon_grows_with_the_answer() -> None:
    """An eighth of the mean memory, within bounds; a fixed one stays."""
    for prompt, left, steps in ((10, 20, LEAST_HORIZON), (32, 1000, 66), (10, 100_000, MOST_HORIZON)):
        assert horizon_steps(Seat(prompt, [left] * 8)) == steps
    for fixed, steps in ((None, LEAST_HORIZON), (48, 48)):
        gate = Gate(fixed)
        gate.admissible(view([made(1, 100, 50)], [made(99, 40)], 1000), None, 0.0)
        assert gate.last_horizon == steps


def test_smallest_first_with_ageing_and_nobody_starves() -> None:
    """By area; whoever waited long or was preempted goes first; without a hint the order stays."""
    big, small = made(1, 500, arrival_time=0.0), made(2, 20, arrival_time=1.0)
    left = {"1": 800, "2": 10, "3": 10}

    def order(waiting: list[Held], now_s: float) -> list[str]:
        return [r.request_id for r in ageing.front(waiting, lambda r: left[r.request_id], now_s, 10.0)]

    assert order([big, small], 2.0) == []
    small.sampling_params = Sampling({"output_tokens": 10})
    assert order([big, small], 2.0) == ["2", "1"]
    assert order([big, small], 80.5) == ["1", "2"]
    again = made(3, 900, 100, num_preemptions=1, arrival_time=5.0)
    assert order([big, small, again], 2.0)[0] == "3"


def test_throttllems_admission_holds_whom_the_promises_cannot_bear() -> None:
    """TBT of the batch, or the deadline of somebody inside that would have been kept."""
    step = StepCost(0.01, 0.001, 0.0, 1e-4)
    tbt = Promises(step, tbt_s=0.0205)
    assert breaks(tbt, [10] * 9, [5] * 9, [0.0] * 9, (100, 50)) is None
    assert breaks(tbt, [10] * 10, [5] * 10, [0.0] * 10, (100, 50)) == "tbt"
    e2e = Promises(step, e2e_s=1.0)
    assert breaks(e2e, [10], [50], [0.38], (100, 50)) is None
    assert breaks(e2e, [10], [50], [0.395], (100, 50)) == "e2e"
    assert breaks(e2e, [10], [50], [0.9], (100, 50)) is None  # lost already
    running, waiting = [made(n, 10, 5) for n in range(10)], [made(99, 100)]
    gate = Gate()
    assert gate.admissible(view(running, waiting, 1000), Told("m", promises=tbt), 0.0) == 0
    assert gate.totals.steps["tbt"] == 1


def test_avoided_preemptions_are_counted_by_a_ghost() -> None:
    """It starts where vLLM would have started the request, and ends when its blocks would be gone."""
    ghost = Ghost()
    ghost.held("a", 30, 2, SIZE)
    for _ in range(2):
        ghost.held("a", 30, 2, SIZE)
    assert (ghost.avoided, ghost.requests) == (0, 1)
    ghost.held("a", 30, 2, SIZE)
    assert ghost.avoided == 1
    ghost.released()
    ghost.held("b", 90, 2, SIZE)
    assert (ghost.avoided, ghost.requests) == (1, 2)


def test_versions_that_were_not_tried_are_refused_unless_forced() -> None:
    """The message names the version and the way out."""
    for version in ("0.27.1", "0.31.0", "0.32.0", "0.32.1rc1+cpu"):
        versions.check(version, {})
    for version in ("0.28.0", "0.3.2", "0.320.0", "1.0"):
        with pytest.raises(RuntimeError, match=rf"this is {version}.*KVWATT_SCHEDULER_FORCE=1"):
            versions.check(version, {})
        versions.check(version, {versions.FORCE_ENV: "1"})
    with pytest.raises(RuntimeError, match="max_num_active_reqs, max_num_running_reqs"):
        versions.seat_name(object())


def test_a_horizon_without_steps_is_refused() -> None:
    """The error names the value."""
    with pytest.raises(ValueError, match="horizon = 0"):
        Gate(fixed_steps=0)
    assert versions.fixed_horizon({}) is None
    assert versions.fixed_horizon({versions.HORIZON_ENV: "48"}) == 48
    for text in ("0", "-1", "1e3", "many"):
        with pytest.raises(RuntimeError, match=rf"KVWATT_SCHEDULER_HORIZON = '{text}'"):
            versions.fixed_horizon({versions.HORIZON_ENV: text})


def test_nothing_heavy_is_loaded_into_vllm() -> None:
    """The plugin brings msgspec, which vLLM has, and the standard library."""
    names = ["gate", "report", "told", "ageing", "versions", "recorder", "reading"]
    imports = ", ".join(f"kvwattd.vllm_plugin.{name}" for name in names)
    code = f"import sys, {imports}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"numpy", "scipy", "lightgbm", "pydantic", "httpx", "fastapi", "prometheus_client", "rich"}
    assert {"kvwatt", "kvwattd", "msgspec"} <= set(loaded.split())
    assert heavy.isdisjoint(loaded.split())
