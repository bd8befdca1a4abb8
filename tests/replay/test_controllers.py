"""What is replayed adds up: tokens, energy, clocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvwatt_sim.gpu import power_w
from kvwatt_sim.replay.controller import FixedClock, replay, replay_group
from kvwatt_sim.replay.outcome import Outcome, merged
from kvwatt_sim.replay.plant import MAX_TOKENS, VirtualPlant
from kvwatt_sim.replay.policies import PolicyError, kvwatt, policy, worst_attainment
from kvwatt_sim.replay.rivals.hindsight import best_fixed
from kvwatt_sim.replay.scenario import Case
from kvwatt_sim.replay.told import Told
from kvwatt_sim.traces import TraceRequest


class Meter:
    """Asked ten times a second, goes through the clocks and adds up energy by itself."""

    period_s = 0.1

    def __init__(self, clocks: tuple[int, ...]) -> None:
        self._clocks = clocks
        self._asked = 0
        self.energy_j: list[float] = []

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        self.energy_j.append(plant.energy_j)
        assert now_s == pytest.approx(self._asked * self.period_s)
        self._asked += 1
        return self._clocks[(self._asked // 7) % len(self._clocks)]


def served(setting: Case, name: str) -> Outcome:
    return policy(name)(setting)


def test_every_policy_serves_the_same_tokens(setting: Case) -> None:
    """Whatever the clocks, all requests are served to their end, and nothing else is."""
    setting = replace(setting, clocks_mhz=setting.clocks_mhz[::12])
    expected = sum(min(r.output_tokens, MAX_TOKENS) for r in setting.requests)
    for name in ("max", "fixed-1200", "best-fixed", "kvwatt", "kvwatt-poll"):
        outcome = served(setting, name)
        assert (outcome.tokens, len(outcome.served)) == (expected, len(setting.requests))
        assert sorted(outcome.served.index.tolist()) == list(range(len(setting.requests)))
        gaps = int(outcome.gaps.counts.sum())
        assert gaps == expected - len(setting.requests)  # no preemption: each token after the first


def test_energy_is_bounded_by_power_times_time(setting: Case) -> None:
    """Never below idling at the lowest clock, never above the power cap, and it only grows."""
    meter = Meter((900, 2520, 1500))
    outcome = replay(setting.card, setting.shape, setting.requests, meter, setting.until_s)
    idle_w = power_w(setting.card, 900, 0.0, 0.0)
    assert idle_w * outcome.duration_s < outcome.energy_j < setting.card.power_cap_w * outcome.duration_s
    steps_j = np.diff(meter.energy_j)
    assert steps_j.size > 1400
    assert (steps_j >= idle_w * meter.period_s * (1 - 1e-9)).all()
    assert outcome.clock_changes == pytest.approx(outcome.duration_s / 0.7, rel=0.05)


def test_an_empty_plant_draws_its_idle_power(setting: Case) -> None:
    """To the end of the horizon, at the clock that is held."""
    for clock in (900, 2520):
        outcome = replay(setting.card, setting.shape, (), FixedClock(clock), 100.0)
        assert outcome.energy_j == pytest.approx(100.0 * power_w(setting.card, clock, 0.0, 0.0))
        assert (outcome.tokens, outcome.duration_s) == (0, pytest.approx(100.0))


def test_best_fixed_is_the_best_of_the_fixed(setting: Case) -> None:
    """No single clock that keeps the promises costs less."""
    few = replace(setting, clocks_mhz=setting.clocks_mhz[::12])
    best = best_fixed(few)
    assert worst_attainment(few, best) >= 0.99
    others = [served(few, f"fixed-{clock}") for clock in few.clocks_mhz]
    feasible = [o.energy_j for o in others if worst_attainment(few, o) >= 0.99]
    assert best.energy_j == min(feasible) < served(few, "max").energy_j


def test_a_late_switch_changes_little_and_a_slower_clock_takes_longer(setting: Case) -> None:
    """Latency shifts the change; the order of the clocks is the order of the times."""
    args = (setting.card, setting.shape, setting.requests)
    now, late = (replay(*args, Meter((900, 2520)), setting.until_s, lag) for lag in (0.0, 0.2))
    assert now.energy_j != late.energy_j
    assert now.energy_j == pytest.approx(late.energy_j, rel=0.03)
    slow, fast = (served(setting, f"fixed-{clock}").served.latencies() for clock in (1200, 2400))
    assert all(slow[name].mean() > fast[name].mean() for name in slow)


def test_kvwatt_is_told_nothing_it_could_not_know(setting: Case) -> None:
    """Its decisions up to a moment are the same whatever comes after it, true lengths to come included."""

    class Until(Exception):  # noqa: N818 - ends the run
        pass

    def decisions(requests: tuple[TraceRequest, ...], until_s: float) -> list[tuple[float, int | None]]:
        controller = kvwatt(setting)
        seen: list[tuple[float, int | None]] = []

        class Noted:
            period_s = controller.period_s

            def target(self, now_s: float, plant: VirtualPlant) -> int | None:
                if now_s >= until_s:
                    raise Until
                seen.append((now_s, controller.target(now_s, plant)))
                return seen[-1][1]

        with pytest.raises(Until):
            replay(setting.card, setting.shape, requests, Noted(), setting.until_s)
        return seen

    cut_s = 45.0
    done = policy("max")(setting)  # a bound on how early requests finish: nobody decodes faster
    ends = dict(zip(done.served.index.tolist(), done.served.last_s.tolist(), strict=True))
    other = tuple(
        replace(r, output_tokens=r.output_tokens + 200) if ends[i] > cut_s else r
        for i, r in enumerate(setting.requests)
    )
    assert other != setting.requests
    first, second = decisions(setting.requests, cut_s), decisions(other, cut_s)
    assert first == second
    assert len({clock for _, clock in first}) > 3


def test_what_is_told_between_polls_is_everything(setting: Case) -> None:
    """The records of a run together hold every first token, every finished request and every token."""
    plant, told = VirtualPlant(setting.card, setting.shape, setting.requests), Told()
    waits, finished, tokens = 0, 0, 0
    for poll in range(1, 10_000):
        plant.advance(0.5 * poll)
        record = told.record(plant)
        waits += len(record.first_tokens_s)
        finished += len(record.finished)
        tokens += record.generation_tokens
        assert record.generation_tokens_total == tokens
        if plant.done:
            break
    assert waits == finished == len(setting.requests)
    assert tokens == sum(min(r.output_tokens, MAX_TOKENS) for r in setting.requests)


def test_merged_outcomes_add_up(setting: Case) -> None:
    """Two plants side by side cost and serve the sum of both."""
    one, two = served(setting, "max"), served(setting, "fixed-1200")
    both = merged([one, two])
    assert both.energy_j == one.energy_j + two.energy_j
    assert (both.tokens, len(both.served)) == (one.tokens + two.tokens, len(one.served) + len(two.served))
    shares = [o.attainment(setting.promises.slo)["tbt"] for o in (one, two, both)]
    assert min(shares[:2]) <= shares[2] <= max(shares[:2])


def test_a_group_of_one_is_the_plant_itself(setting: Case) -> None:
    """Requests that come one by one are served as those that were known from the start."""
    args = (setting.card, setting.shape, setting.requests)
    alone = replay(*args, Meter((900, 2520)), setting.until_s)
    (same,) = replay_group(*args, [Meter((900, 2520))], setting.until_s)
    assert same.energy_j == pytest.approx(alone.energy_j, rel=1e-9)
    assert same.served.last_s == pytest.approx(alone.served.last_s, rel=1e-9)
    assert same.clock_changes == alone.clock_changes


def test_a_group_shares_the_load(setting: Case) -> None:
    """Every request is served once, about evenly, sooner than by one alone and for more idling."""
    args = (setting.card, setting.shape, setting.requests)
    three = replay_group(*args, [FixedClock(None)] * 3, setting.until_s)
    one = replay(*args, FixedClock(None), setting.until_s)
    assert sum(o.tokens for o in three) == one.tokens
    shares = [len(o.served) / len(one.served) for o in three]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.25
    both = merged(three)
    assert both.served.latencies()["e2e"].mean() < one.served.latencies()["e2e"].mean()
    assert both.energy_j > one.energy_j


@pytest.mark.parametrize("name", ["best", "fixed", "fixed-", "fixed-fast", ""])
def test_unknown_policies_are_told(name: str) -> None:
    """With those that are accepted."""
    with pytest.raises(PolicyError, match=r"one of kvwatt, .*fixed-MHZ is accepted"):
        policy(name)
