"""The clock of one engine whose requests are known one by one: energy against expected misses.

Of the clocks that lose few of the requests inside (ADDED_SHARE), the one of least

    power x WORTH_S + sum over promises of price x (misses expected at the clock - those at the top clock)

where a miss of E2E counts WORTH_S / (seconds left to its deadline): of the misses that the clock would add
if it were held to the deadline that is the part of the next WORTH_S seconds.

Lost requests, those that would miss even at the top clock, cost nothing more: no clock brings them back.
Where too many are lost, or prompts come faster than the top clock computes them, driver default drains
fastest. That the clock can be raised later is in the budget, too: what bursts spend more than planned raises
the price at once.
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
from kvwatt.outlook import expected_misses, waits
from kvwatt.outlook_cohort import Cohort, cohort
from kvwatt.outlook_speeds import MAX_PREFILL_SHARE, FloatArray, Speeds, gap_misses, speeds
from kvwatt.present import RequestLengths
from kvwatt.state import Binding, Decision, EngineShape, EngineState, Forecast, Metric, Slo
from kvwatt.traffic import Traffic

# Misses are computed at so many clocks all over the range, and at the clock in force and so many steps beside
# it; they are linear between those.
CLOCKS_ASKED, STEPS_ASKED = 6, (0, 5)
LOW_GRAIN = 4  # clocks; from so many at once on a clock is looked at
WORTH_S = 10.0  # about the time a request runs: for so long a clock's power and misses are compared
LOST_SHARE = 0.3  # of the requests that a promise is open for; with more of them lost, the fastest drain
ADDED_SHARE = 0.024  # of the requests inside: no clock is chosen that would lose more than the top clock
BINDS = {metric: Binding(metric.value) for metric in Metric}
BREAKS = frozenset((*BINDS.values(), Binding.ITL))
NAMES = {metric: metric.upper() for metric in Metric}


@dataclass(slots=True, eq=False)  # made at every decision: to freeze it would take a microsecond of that
class _Scene:
    """Everything a verdict is written from; arrays are (clocks,) unless named otherwise."""

    now_s: float
    clocks_mhz: tuple[int, ...]
    those: Cohort
    pace: Speeds
    first_s: FloatArray  # until the first token of who comes behind a large burst
    metrics: tuple[Metric, ...]
    misses: FloatArray  # (metrics, clocks)
    lost: list[float]  # of each metric: missed at the top clock even
    prices_j: list[float]  # of each metric
    allowed: npt.NDArray[np.bool_]
    smooth: npt.NDArray[np.bool_] | None  # the promise on single gaps is kept; None: there is none
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
    fast = pace.share < MAX_PREFILL_SHARE
    low = _lowest(fast, pace, slo, params.margin)
    asked, between = _spread(low, len(model.clocks_mhz), _index(model.clocks_mhz, applied.clock_mhz))
    wait = waits(those, pace, asked, traffic, shape.max_num_batched_tokens)
    strain = _strain(pace, slo)
    misses = expected_misses(those, pace, asked, wait, lengths, slo, params.margin, strain)
    standings = {
        m: budget.standing(
            m,
            target,
            params.reserve_of(m),
            those.inside,
            strain if m is Metric.TBT else 0.0,
            traffic.surge,
        )
        for m, target in targets(slo).items()
    }
    smooth = _smooth(pace, traffic, shape, slo, params)
    if smooth is not None:
        fast &= smooth
    fast[:low] = False
    first_s = wait.first_s(those, -1) @ between
    scene = _weigh(now_s, model, those, pace, first_s, between, misses, standings, traffic, fast, smooth)
    refused = _overload(scene)
    if refused is not None:
        return _default(scene, refused)
    return _choose(scene, applied, params)


def _strain(pace: Speeds, slo: Slo) -> float:
    """Share of the limit that the time between tokens takes at the top clock under twice the prompts."""
    if slo.tbt is None:
        return 0.0
    left = 1.0 - min(2.0 * pace.share.item(-1), MAX_PREFILL_SHARE)
    return min(pace.decode_s.item(-1) / left / slo.tbt.limit_s, 1.0)


def _smooth(
    pace: Speeds, traffic: Traffic, shape: EngineShape, slo: Slo, params: PolicyParams
) -> npt.NDArray[np.bool_] | None:
    """Clocks at which few enough gaps between tokens are too long; None: nothing is promised of them."""
    if slo.itl is None:
        return None
    longer = gap_misses(pace, traffic, shape, (1.0 - params.margin) * slo.itl.limit_s)
    return np.asarray(longer <= (1.0 - params.reserve) * (1.0 - slo.itl.quantile))


def _lowest(fast: npt.NDArray[np.bool_], pace: Speeds, slo: Slo, margin: float) -> int:
    """Column of the lowest clock that is looked at, the top one at most: those below cannot go on for long,
    for prompts take all of the time (not `fast`) or tokens come too slowly."""
    if slo.tbt is not None:
        fast = fast & (pace.tbt_s < (1.0 - margin) * slo.tbt.limit_s)
    low = int(fast.argmax()) if fast[-1] else len(fast) - 1
    return min(-(-low // LOW_GRAIN) * LOW_GRAIN, len(fast) - 1)


@lru_cache(maxsize=1024)  # of 10 kB; one takes as long as a third of a decision
def _spread(low: int, count: int, around: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Columns of the clocks asked, from `low` to the top, and what interpolates between them:
    (asked, clocks)."""
    spread = np.linspace(low, count - 1, CLOCKS_ASKED).round().astype(np.intp)
    near = np.clip([around + way * step for step in STEPS_ASKED for way in (-1, 1)], low, count - 1)
    columns = np.unique(np.concatenate([spread, near]))
    between = np.array([np.interp(np.arange(count), columns, row) for row in np.eye(len(columns))])
    columns.flags.writeable = between.flags.writeable = False
    return columns, between


def _weigh(
    now_s: float,
    model: CompiledModel,
    those: Cohort,
    pace: Speeds,
    first_s: FloatArray,
    between: FloatArray,
    at_asked: FloatArray,
    standings: dict[Metric, Standing],
    traffic: Traffic,
    allowed: npt.NDArray[np.bool_],
    smooth: npt.NDArray[np.bool_] | None,
) -> _Scene:
    power_w = pace.power_w
    power_range_w = power_w.item(power_w.argmax()) - power_w.item(power_w.argmin())
    metrics = tuple(standings)
    total_j = power_w * WORTH_S
    lost: list[float] = []
    prices_j: list[float] = []
    if not metrics:
        misses = np.zeros((0, len(power_w)))
    else:
        lost = at_asked[: len(metrics), -1].tolist()
        prices_j = [standings[m].price_j(power_range_w, n) for m, n in zip(metrics, lost, strict=True)]
        misses = at_asked @ between
        beyond = misses - misses[:, -1:]
        allowed = allowed & (np.maximum.reduce(beyond[: len(metrics)]) <= ADDED_SHARE * those.inside)
        total_j += np.array(_of_rows(metrics, prices_j)) @ beyond
    total_j[~allowed] = np.inf
    return _Scene(
        now_s,
        model.clocks_mhz,
        those,
        pace,
        first_s,
        metrics,
        misses[: len(metrics)],
        lost,
        prices_j,
        allowed,
        smooth,
        total_j,
        traffic,
        standings,
    )


def _of_rows(metrics: tuple[Metric, ...], prices_j: list[float]) -> list[float]:
    """The price of each row of misses: E2E's stands on those by the seconds left."""
    if metrics[-1] is not Metric.E2E:
        return prices_j
    return [*prices_j[:-1], 0.0, prices_j[-1] * WORTH_S]


def _overload(scene: _Scene) -> str | None:
    """Why only the fastest drain will do."""
    if scene.pace.share[-1] >= MAX_PREFILL_SHARE:
        return "prompts arrive faster than the top clock computes them"
    if scene.smooth is not None and not scene.smooth[-1]:
        return "no clock keeps every promise (full steps break ITL even at the top)"
    for metric, lost in zip(scene.metrics, scene.lost, strict=True):
        judged = scene.those.open(metric) if lost > 0.0 else 0.0
        if lost > LOST_SHARE * judged:
            told = f"{lost:.1f} of {judged:.1f} requests miss {metric.upper()}"
            return f"no clock keeps every promise ({told} even at the top)"
    return None


def _choose(scene: _Scene, applied: Applied, params: PolicyParams) -> Decision:
    best = int(scene.total_j.argmin())
    current = _index(scene.clocks_mhz, applied.clock_mhz)
    if applied.clock_mhz is None or not scene.allowed[current] or best >= current:
        return _verdict(scene, best)
    since_s = scene.now_s - applied.since_s
    if since_s < params.lower_dwell_s:
        return _verdict(scene, current, f"changed {since_s:.1f} s ago")
    gain_j = scene.total_j[current] - scene.total_j[best]
    if gain_j < params.min_gain_ratio * scene.pace.power_w[current] * WORTH_S:
        return _verdict(scene, current)
    return _verdict(scene, best)


def _index(clocks_mhz: tuple[int, ...], clock_mhz: int | None) -> int:
    """Place of the clock in force; driver default is the fastest."""
    if clock_mhz is None:
        return len(clocks_mhz) - 1
    return min(bisect_left(clocks_mhz, clock_mhz), len(clocks_mhz) - 1)


def _default(scene: _Scene, reason: str) -> Decision:
    return _decision(scene, None, len(scene.clocks_mhz) - 1, Binding.NONE, f"driver default: {reason}")


def _verdict(scene: _Scene, i: int, dwell: str | None = None) -> Decision:
    clock = scene.clocks_mhz[i]
    binding, note = (Binding.DWELL, dwell) if dwell is not None else _why_not_lower(scene, i)
    return _decision(scene, clock, i, binding, f"{clock} MHz: {_told(scene, i)}; {note}")


def _told(scene: _Scene, i: int) -> str:
    at_clock = zip(scene.metrics, scene.misses[:, i].tolist(), strict=True)
    counts = ", ".join([f"{n:.2f} miss {NAMES[m]}" for m, n in at_clock])
    spent = ", ".join(
        [f"{s.missed:.0f} of {s.seen:.0f} {NAMES[m]}" for m, s in scene.standings.items() if s.seen > 0]
    )
    said = f"of {scene.those.inside:.0f} requests {counts} expected" if counts else "no promises configured"
    return f"{said} (missed so far: {spent})" if spent else said


def _why_not_lower(scene: _Scene, i: int) -> tuple[Binding, str]:
    """Which promise the next lower clock would break, or that it would save nothing."""
    if i == 0:
        return Binding.LOWEST, "the lowest permitted clock"
    below = scene.clocks_mhz[i - 1]
    if scene.smooth is not None and not scene.smooth[i - 1]:
        return Binding.ITL, f"{below} MHz would break ITL: a full step takes too long"
    saved_w = float(scene.pace.power_w[i] - scene.pace.power_w[i - 1])
    more = (scene.misses[:, i - 1] - scene.misses[:, i]).tolist()
    more_j = [price_j * n for price_j, n in zip(scene.prices_j, more, strict=True)]
    if saved_w <= 0.0 or max(more_j, default=0.0) <= 0.0:
        return Binding.ENERGY, f"{below} MHz would keep the promises but save nothing"
    worst = more_j.index(max(more_j))
    metric = scene.metrics[worst]
    return BINDS[metric], (
        f"{below} MHz would break {NAMES[metric]}: {more[worst]:.3f} more misses to save {saved_w:.1f} W"
    )


def _decision(scene: _Scene, clock_mhz: int | None, i: int, binding: Binding, reason: str) -> Decision:
    lower_breaks = binding in BREAKS
    batch = scene.traffic.arrival_per_s * scene.traffic.output_mean_tokens * scene.pace.tbt_s.item(i)
    return Decision(
        decided_s=scene.now_s,
        clock_mhz=clock_mhz,
        binding=binding,
        reason=reason,
        chosen=_forecast(scene, i, scene.allowed.item(i)),
        next_lower=_forecast(scene, i - 1, scene.allowed.item(i - 1) and not lower_breaks) if i > 0 else None,
        at_default=_forecast(scene, len(scene.clocks_mhz) - 1, clock_mhz is not None),
        projected_batch=batch,
        projected_kv_tokens=batch * scene.those.kv_each_tokens,
    )


def _forecast(scene: _Scene, i: int, feasible: bool) -> Forecast:
    """What a request that arrives now has to expect: first token behind a burst, a long answer."""
    first_s, tbt_s = scene.first_s.item(i), scene.pace.tbt_s.item(i)
    return Forecast(
        clock_mhz=scene.clocks_mhz[i],
        tbt_s=tbt_s,
        ttft_s=first_s,
        e2e_s=first_s + scene.traffic.output_high_tokens * tbt_s,
        power_w=scene.pace.power_w.item(i),
        feasible=feasible,
    )
