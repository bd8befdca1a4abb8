"""Pages one after the other: standstill, restarts in disguise, contradiction by the GPU."""

from __future__ import annotations

import random

import pytest
from snapshots import page, successor

from kvwatt.policy import PolicyParams
from kvwatt.state import Slo, SloTarget
from kvwattd.config import InstanceConfig
from kvwattd.durations import Durations
from kvwattd.instance import InstanceRuntime
from kvwattd.observation import Observation
from kvwattd.progress import STANDSTILL_S, Progress
from kvwattd.telemetry.vllm_metrics import counters_reset
from kvwattd.views import attainment_views

POLL_S = 0.5
SLO = Slo(ttft=SloTarget(2.0), tbt=SloTarget(0.1), e2e=SloTarget(30.0))


def runtime() -> InstanceRuntime:
    """An instance that has seen nothing yet."""
    config = InstanceConfig(name="sim", url="http://127.0.0.1:1", gpus=("0",))
    return InstanceRuntime(config, SLO, PolicyParams(), Observation(POLL_S, 1.5), Durations())


def fed(*pages: tuple[float, int, float]) -> Progress:
    """Progress after pages of (time, running, steps)."""
    progress = Progress(stale_after_s=1.5)
    for observed_s, running, steps in pages:
        progress.on_page(page(observed_s, running, steps))
    return progress


def test_requests_inside_and_no_step_counted_is_a_standstill_after_a_while() -> None:
    """One page without progress blocks lowering; more than two seconds of them are a fault."""
    frozen = [(i * POLL_S, 3, 7.0) for i in range(2)]
    assert fed(*frozen).stalled and fed(*frozen).fault() is None
    frozen = [(i * POLL_S, 3, 7.0) for i in range(6)]
    told = fed(*frozen).fault()
    assert told is not None and "3 requests inside" in told and "2.5 s" in told


def test_a_page_that_moves_or_has_nobody_inside_is_in_order() -> None:
    """Steps that are counted, an idle engine, and an engine that has just got a request are no standstill."""
    moving = fed(*[(i * POLL_S, 3, float(i)) for i in range(20)])
    idle = fed(*[(i * POLL_S, 0, 7.0) for i in range(20)])
    fresh = fed(*[(i * POLL_S, 0, 7.0) for i in range(20)], (20 * POLL_S, 1, 7.0))
    assert [p.fault() for p in (moving, idle, fresh)] == [None, None, None]
    assert not moving.stalled and not idle.stalled


def test_a_sleeping_engine_with_requests_inside_does_not_stand_still() -> None:
    """Requests wait in a sleeping engine; that is told elsewhere."""
    progress = Progress(1.5)
    for i in range(20):
        progress.on_page(page(i * POLL_S, 2, 7.0, asleep=True))
    assert progress.fault() is None


@pytest.mark.parametrize(("utilization", "faulty"), [(0.9, True), (0.1, False)])
def test_an_idle_page_contradicts_a_busy_gpu(utilization: float, faulty: bool) -> None:
    """A cached idle page is given away by a GPU that works while no step is counted."""
    progress = Progress(1.5)
    for i in range(12):
        progress.on_gpu(i * POLL_S, 0.0 if i == 0 else utilization)
        progress.on_page(page(i * POLL_S, 0, 7.0))
    assert (progress.fault() is not None) is faulty


def test_a_burst_after_a_long_rest_is_no_contradiction() -> None:
    """The first page of a burst comes after the GPU became busy: that alone is no fault."""
    progress = Progress(1.5)
    for i in range(100):
        progress.on_gpu(i * POLL_S, 0.0)
        progress.on_page(page(i * POLL_S, 0, 7.0))
    progress.on_gpu(100 * POLL_S - 0.1, 1.0)
    assert progress.fault() is None
    progress.on_page(page(100 * POLL_S, 2, 7.0))
    progress.on_gpu(101 * POLL_S - 0.1, 1.0)
    progress.on_page(page(101 * POLL_S, 2, 20.0))
    assert progress.fault() is None and STANDSTILL_S > 2 * POLL_S


def test_any_sequence_of_engines_behind_one_address_is_survived() -> None:
    """Successors with other buckets, or with more in some buckets and less in others, are restarts."""
    restarts = 0
    for seed in range(60):
        rng = random.Random(seed)
        run, current = runtime(), page(0.0)
        for _ in range(30):
            before, current = current, successor(rng, current)
            reset = counters_reset(before, current)
            run.on_page(current)
            assert (run.observation.interval is None) >= reset
            for view in attainment_views(run, current.observed_s).values():
                assert 0.0 <= view.met <= view.total
            restarts += reset
    assert restarts > 100
