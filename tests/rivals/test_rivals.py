"""Each rival's law, as its source describes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rival_cases import CARD, SHAPE, small

from kvwatt.state import Slo, SloTarget
from kvwatt_sim import gpu
from kvwatt_sim.replay.controller import Drive, FixedClock, replay
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.policies import POLICIES, worst_attainment
from kvwatt_sim.replay.rivals import RIVALS
from kvwatt_sim.replay.rivals.agft import Agft, LinUcb
from kvwatt_sim.replay.rivals.hindsight import Search, best_cap, best_clock
from kvwatt_sim.replay.rivals.race import RaceToIdle
from kvwatt_sim.replay.rivals.throttllem import ThrottLLeM, projected
from kvwatt_sim.replay.rivals.voltana import Voltana
from kvwatt_sim.replay.scenario import Case, Promises
from kvwatt_sim.traces import TraceRequest


def plant_at(requests: tuple[TraceRequest, ...], now_s: float, clock_mhz: int = 2520) -> VirtualPlant:
    plant = VirtualPlant(CARD, SHAPE, requests)
    plant.set_clock(clock_mhz, 0.0)
    plant.advance(now_s)
    return plant


def test_every_rival_serves_everybody() -> None:
    """Same tokens for all, whatever the clock; and every rival can be named on the command line."""
    case = small(1.0, 60.0, 301)
    tokens = {name: serve(case).tokens for name, serve in RIVALS.items()}
    assert set(tokens.values()) == {sum(r.output_tokens for r in case.requests)}
    assert set(RIVALS) < set(POLICIES)


def test_best_fixed_is_the_best_of_all_clocks() -> None:
    """Of the clocks that keep the promises, the one of least energy."""
    case = small(2.4, 200.0, 302)
    outcomes = {
        c: replay(case.card, case.shape, case.requests, FixedClock(c), case.until_s) for c in case.clocks_mhz
    }
    feasible = {c: o.energy_j for c, o in outcomes.items() if worst_attainment(case, o) >= 0.99}
    assert 0 < len(feasible) < len(outcomes)
    assert best_clock(case)[0] == min(feasible, key=feasible.__getitem__)


def test_where_nothing_keeps_the_promises_hindsight_keeps_the_most() -> None:
    """A rank first asks how much is kept, and only then what it costs."""
    case = small(1.0, 60.0, 303, Slo(SloTarget(0.15), SloTarget(0.2), SloTarget(50.0)))
    search = Search(case, lambda p: replay(CARD, SHAPE, case.requests, FixedClock(p[0]), case.until_s))
    assert search.best([(900,), (2520,)]) == (2520,)


def test_a_power_cap_leaves_the_clock_to_the_governor() -> None:
    """Busy power stays near the cap (the clock is chosen by the activity at the clock asked for)."""
    case = small(2.0, 100.0, 304)
    capped = replace(CARD, power_cap_w=160.0)
    plant = VirtualPlant(capped, SHAPE, case.requests)
    plant.set_clock(None, 0.0)
    peak_w = 0.0
    for tick in range(1, 1000):
        plant.advance(0.1 * tick)
        peak_w = max(peak_w, plant.power_w)
    assert 140.0 < peak_w <= 1.06 * 160.0
    assert best_cap(case).energy_j < POLICIES["max"](case).energy_j


def test_throttllem_projects_the_steps_that_the_plant_will_take() -> None:
    """With true lengths and nobody arriving its projection is the plant's future, at every clock."""
    lengths = (40, 90, 90, 200)
    requests = tuple(TraceRequest(0.0, 300, n) for n in lengths)
    case = replace(small(1.0, 10.0, 305), requests=requests)
    plant = plant_at(requests, 1.0, 1260)
    states = plant.request_states()
    left = np.array([n - s.output_tokens for n, s in zip(plant.true_output_tokens(), states, strict=True)])
    kv = np.array([s.prompt_tokens + s.output_tokens for s in states])
    order = np.argsort(left, kind="stable")
    _, ends_s = projected(case, np.array([[1260.0]]), left[order], kv[order])
    plant.advance(60.0)
    assert len(left) == 4
    assert np.sort(plant.served().last_s) - 1.0 == pytest.approx(ends_s[0], abs=0.06)  # one step


def test_throttllem_takes_the_lowest_clock_that_keeps_tbt_and_e2e() -> None:
    """The clock below would break one of them by its own projection; when all break, the top clock."""
    requests = tuple(TraceRequest(0.0, 500, 400) for _ in range(40))
    case = replace(small(1.0, 10.0, 306, every=1), requests=requests)
    plant = plant_at(requests, 6.0)
    chosen = []
    for limit_s in (60.0, 18.0, 14.6, 12.0):
        within = replace(case, promises=Promises(Slo(None, SloTarget(0.2), SloTarget(limit_s))))
        chosen.append(ThrottLLeM(within).target(6.0, plant))
    assert chosen == sorted(chosen)
    assert chosen[0] == 900
    assert 900 < chosen[2] < 2520
    assert chosen[-1] == 2520
    tight = replace(case, promises=Promises(Slo(None, SloTarget(0.032), SloTarget(60.0))))
    assert ThrottLLeM(tight).target(6.0, plant) > 900


def promised(case: Case, e2e_s: float, tbt_s: float = 0.2) -> Case:
    return replace(case, promises=Promises(Slo(None, SloTarget(tbt_s), SloTarget(e2e_s))))


def drive(case: Case, until_s: float) -> VirtualPlant:
    """throttLL'eM at the wheel until that moment."""
    plant = VirtualPlant(case.card, case.shape, case.requests)
    Drive(plant, ThrottLLeM(case)).advance(until_s)
    return plant


def test_throttllem_holds_back_who_would_break_a_deadline() -> None:
    """Forty requests just make their deadline at the top clock. Many more beside them would not: they wait,
    although seats and cache are free, and come in as the first ones end. All are served in the end."""
    first = tuple(TraceRequest(0.0, 500, 400) for _ in range(40))
    later = tuple(TraceRequest(8.0, 500, 400) for _ in range(100))
    case = replace(small(1.0, 10.0, 313, every=1), requests=first + later)
    loose, tight = (drive(promised(case, e2e_s), 9.0) for e2e_s in (60.0, 14.6))
    assert loose.waiting < 100 and tight.waiting > 0 and tight.held(139)
    places = tight.queue()
    assert places == tuple(sorted(places)) and not any(tight.held(p) for p in range(40))
    assert drive(promised(case, 14.6), 200.0).done


def test_throttllem_admits_who_cannot_be_saved() -> None:
    """A deadline that nothing can keep any more holds nobody back, neither the request nor those behind."""
    requests = (TraceRequest(0.0, 500, 1500), *(TraceRequest(1.0, 500, 400) for _ in range(3)))
    case = promised(replace(small(1.0, 10.0, 314), requests=requests), 12.0)
    assert drive(case, 3.0).waiting == 0


def test_throttllem_never_overflows_the_cache() -> None:
    """With true lengths who would overflow it waits: nobody is preempted, as is when everybody comes in."""
    shape = replace(SHAPE, num_blocks=400)
    requests = tuple(TraceRequest(0.05 * i, 300, 200 + 10 * (i % 30)) for i in range(60))
    case = promised(replace(small(1.0, 10.0, 315), requests=requests, shape=shape), 1000.0)
    free = replay(case.card, shape, requests, FixedClock(None), 60.0)
    assert free.served.preemptions.sum() > 0
    plant = drive(case, 400.0)
    assert plant.done and plant.served().preemptions.sum() == 0


def test_throttllem_predicts_within_its_error_and_keeps_its_guess() -> None:
    """About 95 % of the lengths lie within the p95 error of the inflated truth; a guess stays."""
    rival = ThrottLLeM(small(1.0, 10.0, 307), p95_error=0.3)
    guesses = np.array([rival._guess(float(i), 1000) for i in range(4000)])
    assert np.mean(np.abs(guesses / 1300.0 - 1.0) <= 0.3) == pytest.approx(0.95, abs=0.01)
    assert rival._guess(7.0, 1000) == guesses[7]


def test_voltana_runs_at_the_top_while_anything_waits() -> None:
    """A queue behind the batch: top clock; nothing waiting and loose promises: the lowest."""
    many = tuple(TraceRequest(0.0, 4000, 50) for _ in range(12))
    case = replace(small(1.0, 10.0, 308), requests=many)
    waiting = plant_at(many, 0.5)
    assert waiting.waiting > 0
    assert Voltana(case).target(0.5, waiting) == case.clocks_mhz[-1]
    few = (TraceRequest(0.0, 100, 400),)
    assert Voltana(case).target(1.0, plant_at(few, 1.0)) == case.clocks_mhz[0]


def test_voltana_takes_the_lowest_clock_whose_next_step_keeps_the_limit() -> None:
    """By the plant's own law: the clock below would break TBT."""
    requests = tuple(TraceRequest(0.0, 500, 400) for _ in range(60))
    case = replace(small(1.0, 10.0, 309, Slo(None, SloTarget(0.033)), every=1), requests=requests)
    plant = plant_at(requests, 8.0)
    chosen = Voltana(case).target(8.0, plant)
    kv = sum(r.prompt_tokens + r.output_tokens for r in plant.request_states())
    below = case.clocks_mhz[case.clocks_mhz.index(chosen) - 1]
    assert gpu.step_time_s(CARD, chosen, 60, kv, 0) <= 0.033 < gpu.step_time_s(CARD, below, 60, kv, 0)


def test_voltana_waits_for_a_switch_to_settle() -> None:
    """Two switches lie at least a settling time apart."""
    case = small(2.0, 60.0, 310)
    outcome = replay(case.card, case.shape, case.requests, Voltana(case), case.until_s)
    assert 0 < outcome.clock_changes <= case.until_s / 0.2


def test_linucb_finds_the_arm_that_pays_in_each_context() -> None:
    """Two contexts, two arms, each better in one of them: learned, with few pulls wasted."""
    rng = np.random.default_rng(0)
    bandit, right = LinUcb(2, 2), 0
    for turn in range(600):
        side = int(rng.integers(2))
        context = np.eye(2)[side]
        arm = bandit.choose(context)
        bandit.learn(arm, context, (1.0 if arm == side else 0.0) + rng.normal(0.0, 0.1))
        right += turn >= 300 and arm == side
    assert right >= 285


def test_linucb_is_ridge_regression() -> None:
    """The inverse kept by rank-one updates is that of X'X + 1."""
    rng = np.random.default_rng(1)
    bandit = LinUcb(1, 3)
    rows = rng.normal(size=(50, 3))
    for row in rows:
        bandit.learn(0, row, float(row.sum()))
    assert bandit.a_inverse[0] == pytest.approx(np.linalg.inv(rows.T @ rows + np.eye(3)), abs=1e-9)
    assert bandit.a_inverse[0] @ bandit.b[0] == pytest.approx([1.0, 1.0, 1.0], abs=0.05)


def test_agft_decides_on_window_means_only() -> None:
    """One of its twelve clocks every window, and it learns from what the page and the meter say."""
    case = small(1.0, 30.0, 311, every=1)
    rival = Agft(case)
    plant = VirtualPlant(CARD, SHAPE, case.requests)
    asked = set()
    for tick in range(1, 90):
        plant.advance(0.3 * tick)
        asked.add(rival.target(plant.now_s, plant))
    assert asked <= set(rival._clocks)
    assert len(rival._clocks) == 12
    assert np.abs(rival.bandit.b).sum() > 0.0


def test_race_to_idle_is_either_at_the_top_or_at_the_bottom() -> None:
    """Top clock while a request is inside, the lowest afterwards."""
    requests = (TraceRequest(0.0, 100, 100),)
    case = replace(small(1.0, 10.0, 312), requests=requests)
    rival = RaceToIdle(case)
    assert rival.target(1.0, plant_at(requests, 1.0)) == case.clocks_mhz[-1]
    assert rival.target(30.0, plant_at(requests, 30.0)) == case.clocks_mhz[0]
