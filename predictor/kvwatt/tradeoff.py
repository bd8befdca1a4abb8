"""The clock of one engine whose requests are known one by one: energy against expected misses.

Of the clocks that lose few of the requests inside (ADDED_SHARE), the one of least

    power x WORTH_S + sum over promises of price x (misses expected at the clock - those at the top clock)

Lost requests, those that would miss even at the top clock, cost nothing more: no clock brings them back.
Where too many are lost, or prompts come faster than the top clock computes them, driver default drains
fastest. The clock is taken to be held; that it can be raised later is in the budget: what bursts spend
more than planned raises the price at once.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvwatt.attainment import targets
from kvwatt.budget import Budget, Standing
from kvwatt.compiled import CompiledModel
from kvwatt.inputs import Applied, Bounds, PolicyParams
from kvwatt.outlook import (
    MAX_PREFILL_SHARE,
    Cohort,
    FloatArray,
    Speeds,
    Waits,
    cohort,
    expected_misses,
    gap_misses,
    speeds,
    waits,
)
from kvwatt.present import RequestLengths
from kvwatt.state import Binding, Decision, EngineShape, EngineState, Forecast, Metric, Slo
from kvwatt.traffic import Traffic

CLOCKS_ASKED = 14  # misses are computed at so many clocks and are linear between them
WORTH_S = 10.0  # about the time a request runs: for so long a clock's power and misses are compared
LOST_SHARE = 0.3  # of the requests that a promise is open for; with more of them lost, the fastest drain
ADDED_SHARE = 0.05  # of the requests inside: no clock is chosen that would lose more than the top clock


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """Everything a verdict is written from; arrays are (clocks,) unless named otherwise."""

    now_s: float
    clocks_mhz: tuple[int, ...]
    those: Cohort
    pace: Speeds
    wait: Waits
    asked: npt.NDArray[np.intp]  # the clocks at which `wait` was computed
    misses: dict[Metric, FloatArray]
    costs_j: dict[Metric, FloatArray]  # price x misses beyond those at the top clock
    allowed: npt.NDArray[np.bool_]
    smooth: npt.NDArray[np.bool_]  # the promise on single gaps is kept
    total_j: FloatArray
    traffic: Traffic
    standings: dict[Metric, Standing]


def decide_by_request(
    now_s: float,
    state: EngineState,
    traffic: Traffic,
    lengths: RequestLengths,
    shape: EngineShape,
    model: CompiledModel,
    slo: Slo,
    bounds: Bounds,
    params: PolicyParams,
    applied: Applied,
    budget: Budget,
) -> Decision:
    """A clock, or driver default with the reason. Same inputs, same decision."""
    those = cohort(now_s, state, traffic, shape, params.reaction_s)
    inside = float(state.running + state.waiting)
    pace = speeds(model, inside, those.kv_each_tokens, traffic, shape, bounds.factors.typical)
    asked = _spread(len(model.clocks_mhz))
    wait = waits(those, pace, asked, traffic, shape.max_num_batched_tokens)
    misses = expected_misses(those, pace, asked, wait, lengths, slo, params.margin)
    standings = {
        m: budget.standing(m, target, params.reserve_of(m), those.inside)
        for m, target in targets(slo).items()
    }
    carries = pace.share < MAX_PREFILL_SHARE
    smooth = _smooth(pace, traffic, shape, slo, params)
    scene = _weigh(
        now_s, model, those, pace, wait, asked, misses, standings, traffic, carries & smooth, smooth
    )
    refused = _overload(scene)
    if refused is not None:
        return _default(scene, refused)
    return _choose(scene, applied, params)


def _smooth(
    pace: Speeds, traffic: Traffic, shape: EngineShape, slo: Slo, params: PolicyParams
) -> npt.NDArray[np.bool_]:
    """Clocks at which few enough gaps between tokens are too long."""
    if slo.itl is None:
        return np.ones(len(pace.power_w), dtype=np.bool_)
    longer = gap_misses(pace, traffic, shape, (1.0 - params.margin) * slo.itl.limit_s)
    return np.asarray(longer <= (1.0 - params.reserve) * (1.0 - slo.itl.quantile))


@lru_cache(maxsize=16)
def _spread(count: int) -> npt.NDArray[np.intp]:
    """Columns of the clocks asked, the lowest and the top among them."""
    columns = np.unique(np.linspace(0, count - 1, CLOCKS_ASKED).round().astype(np.intp))
    columns.flags.writeable = False
    return columns


def _weigh(
    now_s: float,
    model: CompiledModel,
    those: Cohort,
    pace: Speeds,
    wait: Waits,
    asked: npt.NDArray[np.intp],
    at_asked: dict[Metric, FloatArray],
    standings: dict[Metric, Standing],
    traffic: Traffic,
    allowed: npt.NDArray[np.bool_],
    smooth: npt.NDArray[np.bool_],
) -> _Scene:
    columns = np.arange(len(model.clocks_mhz))
    power_range_w = float(pace.power_w.max() - pace.power_w.min())
    misses, costs_j = {}, {}
    total_j = pace.power_w * WORTH_S
    for metric, numbers in at_asked.items():
        misses[metric] = np.interp(columns, asked, numbers)
        lost = float(numbers[-1])
        beyond = misses[metric] - lost
        costs_j[metric] = standings[metric].price_j(power_range_w, lost) * beyond
        allowed = allowed & (beyond <= ADDED_SHARE * those.inside)
        total_j = total_j + costs_j[metric]
    return _Scene(
        now_s,
        model.clocks_mhz,
        those,
        pace,
        wait,
        asked,
        misses,
        costs_j,
        allowed,
        smooth,
        np.where(allowed, total_j, np.inf),
        traffic,
        standings,
    )


def _overload(scene: _Scene) -> str | None:
    """Why only the fastest drain will do."""
    if scene.pace.share[-1] >= MAX_PREFILL_SHARE:
        return "prompts arrive faster than the top clock computes them"
    if not scene.smooth[-1]:
        return "no clock keeps every promise (full steps break ITL even at the top)"
    for metric, misses in scene.misses.items():
        judged = scene.those.open(metric)
        if misses[-1] > LOST_SHARE * judged:
            told = f"{misses[-1]:.1f} of {judged:.1f} requests miss {metric.upper()}"
            return f"no clock keeps every promise ({told} even at the top)"
    return None


def _choose(scene: _Scene, applied: Applied, params: PolicyParams) -> Decision:
    best = int(np.argmin(scene.total_j))
    current = _index(scene, applied.clock_mhz)
    if applied.clock_mhz is None or not scene.allowed[current] or best >= current:
        return _verdict(scene, best)
    since_s = scene.now_s - applied.since_s
    if since_s < params.lower_dwell_s:
        return _verdict(scene, current, f"changed {since_s:.1f} s ago")
    gain_j = scene.total_j[current] - scene.total_j[best]
    if gain_j < params.min_gain_ratio * scene.pace.power_w[current] * WORTH_S:
        return _verdict(scene, current)
    return _verdict(scene, best)


def _index(scene: _Scene, clock_mhz: int | None) -> int:
    if clock_mhz is None:
        return len(scene.clocks_mhz) - 1
    return min(bisect_left(scene.clocks_mhz, clock_mhz), len(scene.clocks_mhz) - 1)


def _default(scene: _Scene, reason: str) -> Decision:
    return _decision(scene, None, len(scene.clocks_mhz) - 1, Binding.NONE, f"driver default: {reason}")


def _verdict(scene: _Scene, i: int, dwell: str | None = None) -> Decision:
    clock = scene.clocks_mhz[i]
    binding, note = (Binding.DWELL, dwell) if dwell is not None else _why_not_lower(scene, i)
    return _decision(scene, clock, i, binding, f"{clock} MHz: {_told(scene, i)}; {note}")


def _told(scene: _Scene, i: int) -> str:
    counts = ", ".join(f"{n[i]:.2f} miss {m.upper()}" for m, n in scene.misses.items())
    spent = ", ".join(
        f"{s.missed:.0f} of {s.seen:.0f} {m.upper()}" for m, s in scene.standings.items() if s.seen > 0
    )
    said = f"of {scene.those.inside:.0f} requests {counts} expected" if counts else "no promises configured"
    return f"{said} (missed so far: {spent})" if spent else said


def _why_not_lower(scene: _Scene, i: int) -> tuple[Binding, str]:
    """Which promise the next lower clock would break, or that it would save nothing."""
    if i == 0:
        return Binding.LOWEST, "the lowest permitted clock"
    below = scene.clocks_mhz[i - 1]
    more_j = {m: float(cost[i - 1] - cost[i]) for m, cost in scene.costs_j.items()}
    if not scene.smooth[i - 1]:
        return Binding.ITL, f"{below} MHz would break ITL: a full step takes too long"
    saved_w = float(scene.pace.power_w[i] - scene.pace.power_w[i - 1])
    worst = max(more_j, key=more_j.__getitem__, default=None)
    if worst is None or more_j[worst] <= 0.0 or saved_w <= 0.0:
        return Binding.ENERGY, f"{below} MHz would keep the promises but save nothing"
    more = float(scene.misses[worst][i - 1] - scene.misses[worst][i])
    return Binding(worst.value), (
        f"{below} MHz would break {worst.upper()}: {more:.3f} more misses to save {saved_w:.1f} W"
    )


def _decision(scene: _Scene, clock_mhz: int | None, i: int, binding: Binding, reason: str) -> Decision:
    lower_breaks = binding in (Binding.TTFT, Binding.TBT, Binding.E2E, Binding.ITL)
    batch = scene.traffic.arrival_per_s * scene.traffic.output_mean_tokens * float(scene.pace.tbt_s[i])
    return Decision(
        decided_s=scene.now_s,
        clock_mhz=clock_mhz,
        binding=binding,
        reason=reason,
        chosen=_forecast(scene, i, bool(scene.allowed[i])),
        next_lower=_forecast(scene, i - 1, bool(scene.allowed[i - 1]) and not lower_breaks)
        if i > 0
        else None,
        at_default=_forecast(scene, len(scene.clocks_mhz) - 1, clock_mhz is not None),
        projected_batch=batch,
        projected_kv_tokens=batch * scene.those.kv_each_tokens,
    )


def _forecast(scene: _Scene, i: int, feasible: bool) -> Forecast:
    """What a request that arrives now has to expect: first token behind a burst, a long answer."""
    first_s = float(np.interp(i, scene.asked, scene.wait.first_s[-1]))
    tbt_s = float(scene.pace.tbt_s[i])
    return Forecast(
        clock_mhz=scene.clocks_mhz[i],
        tbt_s=tbt_s,
        ttft_s=first_s,
        e2e_s=first_s + scene.traffic.output_high_tokens * tbt_s,
        power_w=float(scene.pace.power_w[i]),
        feasible=feasible,
    )
