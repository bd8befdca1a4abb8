"""kvwatt's own members in the virtual pool: enough for the rate, steady at a constant one."""

from __future__ import annotations

import numpy as np
import pytest
from day_cases import KIND, NAMES, small

from kvwatt.capacity_table import CapacityTable
from kvwatt.pool import PoolParams
from kvwatt_sim.day.clocks import fixed
from kvwatt_sim.day.ours import Planner, engine_kind
from kvwatt_sim.day.pool import Pool

RATES = np.linspace(0.0, 4.0, 5)
TABLE = CapacityTable(
    (900, 2520),
    RATES,
    np.stack([70.0 + 20.0 * RATES, 80.0 + 40.0 * RATES], axis=1),
    np.array([1.5, 3.0]),
)
PARAMS = PoolParams(minimum=1, maximum=4, cooldown_s=20.0, less_for_s=20.0)
SETTLED_S = 400.0


def planner() -> Planner:
    return Planner({"tp1": engine_kind(KIND, TABLE, parked_w=36.0, can_sleep=True)}, PARAMS)


@pytest.mark.parametrize("rate", [0.3, 1.5, 2.6, 4.0, 5.7, 8.0, 9.5])
def test_at_a_constant_rate_the_number_changes_at_most_once(rate: float) -> None:
    """After settling, and what stays carries the rate."""
    setting = small([rate] * 15, 900.0)
    done = Pool(setting, planner(), fixed(None)).run()
    assert sum(at > SETTLED_S for at, _, _ in done.events) <= 1
    late = [sample.ready for sample in done.samples if sample.at_s > SETTLED_S]
    assert min(late) * TABLE.max_rate_per_s >= min(rate, 4 * TABLE.max_rate_per_s)
    assert max(late) <= 4


def test_a_rising_rate_finds_its_members_ready() -> None:
    """More are started for it, and they get their share of it."""
    setting = small([0.5, 0.5, 3.0, 6.0, 6.0], 750.0, reference=NAMES[:1])
    scaler = planner()
    done = Pool(setting, scaler, fixed(None)).run()
    assert done.samples[20].ready == 1
    assert done.samples[-1].ready >= 2
    assert len(done.outcome.served) == len(setting.requests)
    assert all(made.reason for made in scaler.plans)


def test_what_the_planner_is_told_of_a_kind() -> None:
    """Watts of the group; the energy of a start beyond what stopped draws."""
    kind = engine_kind(KIND, TABLE, parked_w=36.0, can_sleep=False)
    assert kind.stopped_w == 36.0
    assert kind.start_j == pytest.approx((KIND.starting_w - 36.0) * KIND.start_s)
    assert kind.asleep_w < kind.ready_idle_w * 1.1
