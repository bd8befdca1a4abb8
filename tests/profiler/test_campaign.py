"""The choice of points: it stops in time, knows unseen loads, and looks where least is known."""

from __future__ import annotations

import numpy as np
import pytest

from kvwatt.prior import StepPrior
from kvwatt.profiles import table_of
from kvwatt.training import Origin, fit
from kvwatt_sim.cards import load
from kvwatt_sim.virtual_campaign import errors, limits_of, run_campaign, unseen_points
from kvwattd.profiler.campaign import Campaign, Task
from kvwattd.profiler.information import Points, posterior, reduction
from kvwattd.profiler.plan import DecodeLoad, IdleLoad, Limits, MixedLoad, PrefillLoad, mixed_loads

LIMITS = Limits(
    kv_capacity_tokens=200_000, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=32_768
)
CLOCKS = (2000, 1500, 1100, 800)
LAW = StepPrior((2e-3, 5e-4, 12e-3, 5e-3, 3e-4, 1e-5, 2.5e-4, 2.5e-4, 1e-5, 5e-6, 7e-8, 8e-8, 3e-9, 5.0, 5.0))


@pytest.mark.parametrize("name", ["l20", "a100", "h200"])
def test_unseen_points_are_known_within_three_percent_in_ten_minutes(name: str) -> None:
    """On every card: decode, prefill and mixed steps at loads and clocks that were never measured."""
    card = load(name)
    campaign = run_campaign(card, seed=3)
    assert campaign.seconds <= 600
    model = fit(table_of(campaign.rows), Origin(card.gpu_name))
    for kind, points in unseen_points(card, seed=77, count=200).items():
        error, _ = errors(model, card, points)
        assert error <= 0.03, kind


def test_it_stops_when_enough_is_known() -> None:
    """With little noise the campaign ends by itself, long before its loads or its time are used up."""
    card = load("h200")
    campaign = run_campaign(card, seed=4)
    assert campaign.good_enough
    assert campaign.loads < Campaign(limits_of(card.engine_shape()), CLOCKS).planned_loads
    assert {row.kind for row in campaign.rows} == {"decode", "prefill", "mixed", "idle"}


def test_a_campaign_ends_within_its_budget() -> None:
    """With one minute it stops after one minute, and what it has can be trained on."""
    card = load("l20")
    campaign = run_campaign(card, seed=5, budget_s=60.0)
    assert 30 <= campaign.seconds <= 62
    assert not campaign.good_enough
    assert fit(table_of(campaign.rows), Origin("x")).step_time_s(1500, 8, 4000, 0) > 0


def test_the_ends_of_every_range_come_first() -> None:
    """The first tasks hold the largest and smallest batch and prompt at every clock, and a mixed load."""
    campaign = Campaign(LIMITS, CLOCKS)
    tasks = [campaign.next(600.0) for _ in range(6)]
    loads = [task.load for task in tasks if task is not None]
    assert {load.batch for load in loads if isinstance(load, DecodeLoad)} == {1, 256}
    assert {load.prompt_tokens for load in loads if isinstance(load, PrefillLoad)} == {64, 2048}
    assert {type(load) for load in loads} == {DecodeLoad, PrefillLoad, MixedLoad, IdleLoad}
    assert all(task is not None and task.clocks_mhz == CLOCKS for task in tasks)


def test_a_load_that_gave_nothing_is_not_asked_again_for_ever() -> None:
    """A server on which every load fails ends the campaign instead of looping."""
    campaign = Campaign(LIMITS, CLOCKS)
    for _ in range(1000):
        task = campaign.next(600.0)
        if task is None:
            return
        campaign.add(task, [])
    pytest.fail("the campaign never ended")


def test_every_task_starts_at_the_highest_clock() -> None:
    """Promises are approached from above: the clocks of a task fall and begin with the highest."""
    card = load("a100")
    limits = limits_of(card.engine_shape())
    campaign = Campaign(limits, CLOCKS)
    for _ in range(12):
        task = campaign.next(600.0)
        assert task is not None
        assert task.clocks_mhz[0] == CLOCKS[0]
        assert list(task.clocks_mhz) == sorted(set(task.clocks_mhz), reverse=True)
        campaign.add(Task(IdleLoad(), ()), [])


def test_mixed_loads_fit_one_step() -> None:
    """Batch and prompt together never exceed what a step takes, and a sequence is left for the prompt."""
    loads = mixed_loads(LIMITS)
    assert len(loads) >= 12
    for load_ in loads:
        assert load_.batch + load_.prompt_tokens <= LIMITS.max_num_batched_tokens
        assert load_.batch < LIMITS.max_num_seqs
        assert load_.batch * load_.context_tokens + load_.prompt_tokens <= LIMITS.kv_capacity_tokens
    assert mixed_loads(Limits(10_000, 1, 512, 4096)) == []


def points(*rows: tuple[float, float, float, float]) -> Points:
    return Points(*np.array(rows, dtype=np.float64).T)


def test_measuring_lowers_the_variance_most_where_it_was_measured() -> None:
    """A measured point is known to about the noise; a distant one keeps most of its variance."""
    asked = points((1500, 8, 8000, 0), (600, 250, 250_000, 0))
    before = posterior(LAW, points((1500, 8, 8000, 0)).__class__(*(np.zeros(0),) * 4), asked)
    after = posterior(LAW, points((1500, 8, 8000, 0)), asked)
    assert after[0, 0] < 0.0003 < 0.05 < before[0, 0]
    assert after[1, 1] > 0.1 * before[1, 1]
    assert np.all(np.diag(after) <= np.diag(before) + 1e-12)


def test_reduction_is_what_the_posterior_loses() -> None:
    """The promised gain equals the fall of the summed variance when the point is then measured."""
    asked = points((1500, 8, 8000, 0), (600, 200, 100_000, 0), (2000, 0, 0, 512))
    measured = points((1000, 16, 16_000, 0))
    before = posterior(LAW, measured, asked)
    both = points((1000, 16, 16_000, 0), (600, 200, 100_000, 0))
    after = posterior(LAW, both, asked)
    assert reduction(before, [1]) == pytest.approx(np.trace(before) - np.trace(after), rel=1e-6)
