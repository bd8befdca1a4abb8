"""Each fault: driver default in time, no wrong clock, control again by itself, and the cause told."""

from __future__ import annotations

import pytest
from damage import NotPossibleHere
from fault_stage import Stage
from scenario import Scenario, play
from scenarios import SCENARIOS
from scenarios_process import START_S

SLACK_S = 2.5  # the machine of the tests is busy with other tests
# Where a process starts on the way, its imports take as long as the machine has others to serve; what counts
# is that nothing is set before the reset, and the scenario itself looks at that.
START_SLACK_S = 60.0
QUICK = [scenario for scenario in SCENARIOS if scenario.quick]


def test_no_scenario_has_the_name_of_another() -> None:
    """A table of faults tells each of them once."""
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 40


@pytest.mark.parametrize("scenario", QUICK, ids=[scenario.name for scenario in QUICK])
def test_a_fault_ends_at_driver_default_and_in_control_again(
    damaged_stage: Stage, scenario: Scenario
) -> None:
    """What the scenario promises holds, on a daemon that has been through those before it."""
    try:
        played = play(scenario, damaged_stage, START_SLACK_S if scenario.limit_s == START_S else SLACK_S)
    except NotPossibleHere as error:
        pytest.skip(str(error))
    assert played.wrong_clocks == 0
