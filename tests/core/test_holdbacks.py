"""What holds a clock back is told when it begins, and nothing is learned while it moves the clock about."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvwatt.state import GpuSample
from kvwatt.traffic import Interval
from kvwattd.guard.obedience import IDLE, LIMITS
from kvwattd.holdbacks import QUIET_S, HoldBacks, held_back
from kvwattd.learning import Learner, SampleLog

BUSY = Interval(0.5, 1, 25, 100, 200, 4.0, 200, 8, 8000, True)


def sample(reasons: int, observed_s: float = 0.0) -> GpuSample:
    return GpuSample(observed_s, "GPU-1", 1000, 150.0, 0.0, 50.0, 0.9, reasons)


@pytest.mark.parametrize("reason", sorted(LIMITS))
def test_told_once_an_episode(reason: int) -> None:
    """A reason that comes and goes within a minute is one line; after a quiet minute it is another."""
    holdbacks = HoldBacks()
    assert holdbacks.begun([sample(reason)]) == [f"GPU GPU-1 held back by: {LIMITS[reason]}"]
    for t_s in (0.5, 20.0, 60.0):
        assert holdbacks.begun([sample(0, t_s), sample(reason, t_s)]) == []
    assert len(holdbacks.begun([sample(reason, 61.0 + QUIET_S)])) == 1


def test_an_idle_or_free_gpu_is_not_held_back() -> None:
    """Idleness and clocks that were set are no limits."""
    assert not held_back([sample(0), sample(IDLE), sample(0x2)])
    assert held_back([sample(0), sample(0x4)])


@pytest.mark.parametrize(("reasons", "taught"), [(0, 1), (0x4, 0), (0x20, 0), (0x40, 0)])
def test_nothing_is_learned_under_a_cap_or_heat(reasons: int, taught: int, tmp_path: Path) -> None:
    """Neither an operating point nor a profile row comes of seconds at a clock that the driver moved."""
    learner, rows = Learner(), SampleLog(tmp_path)
    for _ in range(4):
        learner.observe("m", BUSY, {"GPU-1": sample(reasons)}, 64.0, True)
    rows.observe("sim", BUSY, {"GPU-1": sample(reasons)}, 1)
    assert len(learner.ring) == taught
    assert rows.rows("sim") == taught
