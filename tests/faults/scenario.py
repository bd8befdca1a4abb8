"""A fault as a definition; checked of each: default in time, no wrong clock, recovery, the cause told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from daemon_process import eventually
from fault_stage import CEILING_MHZ, FLOOR_MHZ, RESET, SET, Stage, target_mhz
from host_stalls import lost_s

from kvwatt_sim.nvml.said import SetterCall

UNHARMED_S = 1.5  # how long a fault is watched that must not change anything
STALL_FELT_S = 5.0  # how long after a stall of the machine the lease or the pages may be found too old
WATCHES = 5
QUIET_S = 0.5  # how long nothing may be set after driver default while the damage lasts
TELLS_WITHIN_S = 60.0
RECOVERS_WITHIN_S = 60.0


Do = Callable[[Stage], float | None]


@dataclass(frozen=True)
class Metric:
    """The sample that names the cause: it grows, or it is `value`."""

    name: str
    labels: dict[str, str]
    value: float | None = None

    def __str__(self) -> str:
        inside = ",".join(f"{key}={value}" for key, value in self.labels.items())
        return f"{self.name}{{{inside}}}" if inside else self.name


def grows(name: str, **labels: str) -> Metric:
    return Metric(name, labels)


def becomes(value: float, name: str, **labels: str) -> Metric:
    return Metric(name, labels, value)


GONE = Metric("up", {}, 0.0)  # Prometheus' own: the daemon cannot be scraped


def nothing(stage: Stage) -> None:
    """Nothing to be undone."""


@dataclass(frozen=True)
class Scenario:
    """One fault.

    `do` does the damage and may return when it took effect (monotonic seconds); `limit_s` is the time to
    driver default, None where clocks may stay as they are. `undo` takes the damage away: control must come
    back without a restart of the daemon, unless it was the daemon that died: then `undo` is its supervisor.
    """

    name: str
    do: Do
    limit_s: float | None
    metric: Metric
    log: str
    undo: Do = nothing
    quick: bool = True
    prepare: Do = nothing
    stays: bool = True  # nothing may be set while the damage lasts
    told_after: bool = False  # the daemon can tell only once it goes on
    above_floor: bool = False  # a clock that was needed must not be lowered to the floor
    recovers_within_s: float = RECOVERS_WITHIN_S


@dataclass(frozen=True)
class Played:
    """What became of it."""

    name: str
    limit_s: float | None
    default_s: float | None
    wrong_clocks: int
    recovered_s: float
    metric: str
    log: str


def play(scenario: Scenario, stage: Stage, slack_s: float = 0.0) -> Played:
    """Do it and undo it; AssertionError names what did not happen. `slack_s` is for busy machines.

    What the machine stood still is measured beside it and added to what is permitted.
    """
    stage.control()
    scenario.prepare(stage)
    before, metric_before = stage.moment(), _value(stage, scenario.metric)
    since_s = time.monotonic()
    since_s = scenario.do(stage) or since_s
    if scenario.limit_s is None:
        default_s = None
        _unharmed(scenario, stage)
    else:
        default_s = _default(stage, since_s, scenario.limit_s + slack_s)
    default_at_s = time.monotonic()
    if not scenario.told_after:
        _tells(scenario, stage, metric_before, before.log_length)
    if scenario.limit_s is not None and scenario.stays:
        time.sleep(max(default_at_s + QUIET_S - time.monotonic(), 0.0))
        late = [call for call in stage.sets_since(default_at_s) if call.result == "SUCCESS"]
        assert not late, late
    if scenario.above_floor:
        low = [c for c in stage.sets_since(before.t_s) if target_mhz(c) <= FLOOR_MHZ]
        assert not low, low
    undone_s = time.monotonic()
    scenario.undo(stage)
    stage.control()
    recovered_s = time.monotonic() - undone_s
    if scenario.told_after:
        _tells(scenario, stage, metric_before, before.log_length)
    permitted_s = scenario.recovers_within_s + lost_s(undone_s)
    assert recovered_s <= permitted_s, f"control after {recovered_s:.1f} s"
    wrong = wrong_clocks(stage)
    assert not wrong, wrong
    return Played(
        scenario.name,
        scenario.limit_s,
        default_s,
        len(wrong),
        recovered_s,
        str(scenario.metric),
        scenario.log,
    )


def wrong_clocks(stage: Stage) -> list[SetterCall]:
    """Setter calls that should never be: another's, an unsupported clock, one outside the bounds."""
    supported = set(stage.gpus.spec(0).supported_mhz)

    def wrong(call: SetterCall) -> bool:
        if call.call == RESET:
            return False
        low, high = (int(part) for part in call.args.split(",")) if call.call == SET else (0, 0)
        return not ({low, high} <= supported and FLOOR_MHZ <= low <= high <= CEILING_MHZ)

    return [call for call in stage.gpus.setter_log() if wrong(call)]


def _default(stage: Stage, since_s: float, limit_s: float) -> float:
    """Seconds from the damage to driver default."""
    while stage.held_mhz is not None:
        late_s = time.monotonic() - since_s
        assert late_s <= limit_s + lost_s(since_s), (
            f"still {stage.held_mhz} MHz after {late_s:.2f} s\n{stage.daemon.log()[-3000:]}"
        )
        time.sleep(0.002)
    return time.monotonic() - since_s


def _unharmed(scenario: Scenario, stage: Stage) -> None:
    """Control goes on as if nothing were. What a stall of the machine takes away comes back, and stays."""
    for _ in range(WATCHES):
        since_s = time.monotonic()
        while (controls := _controls(stage)) and time.monotonic() < since_s + UNHARMED_S:
            time.sleep(0.1)
        if controls:
            return
        assert lost_s(since_s - STALL_FELT_S) > 0.0, stage.daemon.describe()
        stage.control()
    raise AssertionError(f"a stall of the machine in each of {WATCHES} watches")


def _controls(stage: Stage) -> bool:
    return stage.daemon.instance()["regime"] in ("active", "override")


def _tells(scenario: Scenario, stage: Stage, metric_before: float, log_length: int) -> None:
    """The metric and the log name the cause while the damage lasts."""

    def told() -> bool:
        return scenario.log in stage.daemon.log()[log_length:]

    def measured() -> bool:
        value = _value(stage, scenario.metric)
        return value > metric_before if scenario.metric.value is None else value == scenario.metric.value

    eventually(
        told, lambda: f"log: {scenario.log!r}\n{stage.daemon.log()[log_length:][-3000:]}", TELLS_WITHIN_S
    )
    eventually(
        measured, lambda: f"metric {scenario.metric}: {_value(stage, scenario.metric)}", TELLS_WITHIN_S
    )


def _value(stage: Stage, metric: Metric) -> float:
    """Its value now; for `up`, whether anything can be scraped."""
    if metric is GONE:
        return float(stage.daemon.reachable())
    return stage.daemon.metric(metric.name, **metric.labels)
