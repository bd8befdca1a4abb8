"""decide(): the clock of least expected energy at which every promise still holds.

Raise at once; lower only after a dwell and for a gain worth a switch. When no clock keeps the
promises, or the KV cache is about to overflow, the answer is the driver's default, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from kvwatt.budget import Budget
from kvwatt.compiled import CompiledModel
from kvwatt.inputs import Applied, Bounds, PolicyParams
from kvwatt.operating import OperatingPoints, operating_points, tables
from kvwatt.present import RequestLengths
from kvwatt.projection import Projection, project
from kvwatt.state import Binding, Decision, EngineShape, EngineState, Forecast, Metric, Slo
from kvwatt.tradeoff import decide_by_request
from kvwatt.traffic import Traffic

BoolArray = npt.NDArray[np.bool_]
NO_BUDGET = Budget()
__all__ = ["Applied", "Bounds", "Budget", "PolicyParams", "decide"]


def decide(
    now_s: float,
    state: EngineState,
    traffic: Traffic,
    shape: EngineShape,
    model: CompiledModel,
    slo: Slo,
    bounds: Bounds,
    params: PolicyParams,
    applied: Applied,
    budget: Budget = NO_BUDGET,
) -> Decision:
    """Choose a clock for one instance. Same inputs, same decision; `now_s` is monotonic seconds."""
    refusal = _refuse(traffic, bounds, params)
    if refusal is not None:
        return _default(now_s, Binding.NONE, refusal)
    lengths = _by_request(state, traffic)
    if lengths is not None:
        return decide_by_request(
            now_s, state, traffic, lengths, shape, model, slo, bounds, params, applied, budget
        )
    t = tables(model, state, traffic, shape)
    tbt_quantile = slo.tbt.quantile if slo.tbt is not None else 0.99
    points = operating_points(
        t, state, traffic, params.reaction_s, params.horizon_s, bounds.factors, tbt_quantile
    )
    current = _index(model, applied.clock_mhz)
    trajectory = project(state, traffic, shape, float(points.tbt_mean_s[current]), params.horizon_s)
    view = _View(now_s, model, points, _violations(points, slo, params.margin), slo, trajectory)
    if state.waiting_for_capacity > 0:
        return view.default(Binding.KV, "requests wait for KV cache: fastest drain")
    if trajectory.kv_overflow_step(shape) is not None:
        return view.default(Binding.KV, "the KV cache may overflow within the horizon: fastest drain")
    return _choose(view, current, applied, params)


def _by_request(state: EngineState, traffic: Traffic) -> RequestLengths | None:
    """Lengths by request, where requests are known one by one (or nobody is there)."""
    known = bool(state.requests) or state.running + state.waiting == 0
    # What isinstance would ask of the protocol, without the 20 us that it takes on Python 3.11.
    by_request = known and hasattr(traffic.lengths, "alive")
    return cast(RequestLengths, traffic.lengths) if by_request else None


def _refuse(traffic: Traffic, bounds: Bounds, params: PolicyParams) -> str | None:
    if bounds.drifted:
        return "the step-time model no longer fits what is measured"
    if traffic.exposure_s < params.min_exposure_s:
        return f"watching traffic: {traffic.exposure_s:.1f} s of {params.min_exposure_s:.0f} s seen"
    if traffic.finished < params.min_finished:
        return f"watching lengths: {traffic.finished:.0f} of {params.min_finished:.0f} requests finished"
    return None


def _default(now_s: float, binding: Binding, reason: str) -> Decision:
    return Decision(decided_s=now_s, clock_mhz=None, binding=binding, reason=f"driver default: {reason}")


def _index(model: CompiledModel, clock_mhz: int | None) -> int:
    """Column of the applied clock; driver default is the fastest."""
    clocks = model.clocks_mhz
    if clock_mhz is None:
        return len(clocks) - 1
    return int(np.clip(np.searchsorted(clocks, clock_mhz), 0, len(clocks) - 1))


def _violations(points: OperatingPoints, slo: Slo, margin: float) -> dict[Metric, BoolArray]:
    """Per promised metric, the clocks at which it would break; a clock that cannot keep up breaks TTFT."""
    pairs = (
        (Metric.TTFT, slo.ttft, points.ttft_s),
        (Metric.TBT, slo.tbt, points.tbt_s),
        (Metric.E2E, slo.e2e, points.e2e_s),
    )
    broken = {
        m: ~(value <= target.limit_s * (1.0 - margin)) for m, target, value in pairs if target is not None
    }
    broken[Metric.TTFT] = broken.get(Metric.TTFT, np.zeros_like(points.carries)) | ~points.carries
    return broken


@dataclass(frozen=True, slots=True)
class _View:
    """Everything a verdict is written from."""

    now_s: float
    model: CompiledModel
    points: OperatingPoints
    broken: dict[Metric, BoolArray]
    slo: Slo
    projection: Projection

    @property
    def feasible(self) -> BoolArray:
        return np.asarray(~np.logical_or.reduce(list(self.broken.values())))

    def forecast(self, i: int) -> Forecast:
        p = self.points
        return Forecast(
            clock_mhz=int(self.model.clocks_mhz[i]),
            tbt_s=float(p.tbt_s[i]),
            ttft_s=float(p.ttft_s[i]),
            e2e_s=float(p.e2e_s[i]),
            power_w=float(p.power_w[i]),
            feasible=bool(self.feasible[i]),
        )

    def first_broken(self, i: int) -> Metric | None:
        return next((m for m, bad in self.broken.items() if bad[i]), None)

    def default(self, binding: Binding, reason: str) -> Decision:
        return self._decision(None, len(self.model.clocks_mhz) - 1, binding, f"driver default: {reason}")

    def verdict(self, i: int, binding: Binding, note: str) -> Decision:
        clock = int(self.model.clocks_mhz[i])
        return self._decision(
            clock, i, binding, f"{clock} MHz: {_promises(self.forecast(i), self.slo)}; {note}"
        )

    def _decision(self, clock_mhz: int | None, i: int, binding: Binding, reason: str) -> Decision:
        return Decision(
            decided_s=self.now_s,
            clock_mhz=clock_mhz,
            binding=binding,
            reason=reason,
            chosen=self.forecast(i),
            next_lower=self.forecast(i - 1) if i > 0 else None,
            at_default=self.forecast(len(self.model.clocks_mhz) - 1),
            projected_batch=float(self.projection.batch_mean[-1]),
            projected_kv_tokens=float(self.projection.kv_mean_tokens[-1]),
        )


def _promises(forecast: Forecast, slo: Slo) -> str:
    parts = (
        ("TTFT", forecast.ttft_s, slo.ttft),
        ("TBT", forecast.tbt_s, slo.tbt),
        ("E2E", forecast.e2e_s, slo.e2e),
    )
    told = [f"{n} {v:.3g} s of {target.limit_s:g} s" for n, v, target in parts if target is not None]
    return ", ".join(told) or "no promises configured"


def _choose(view: _View, current: int, applied: Applied, params: PolicyParams) -> Decision:
    feasible = view.feasible
    if not feasible.any():
        worst = view.first_broken(len(feasible) - 1)
        return view.default(Binding.NONE, f"no clock keeps every promise ({worst} breaks even at the top)")
    power = np.where(feasible, view.points.power_w, np.inf)
    best = int(np.argmin(power))
    if feasible[current] and best != current:
        held = _hold(view, power, best, current, applied, params)
        if held is not None:
            return held
    return view.verdict(best, *_why_not_lower(view, best))


def _hold(
    view: _View,
    power: npt.NDArray[np.float64],
    best: int,
    current: int,
    applied: Applied,
    params: PolicyParams,
) -> Decision | None:
    """Stay where the promises hold already, unless the dwell is over and the gain worth a switch."""
    since_s = view.now_s - applied.since_s
    # From the driver's default there is no own clock to dwell on: only the gain decides.
    if applied.clock_mhz is not None and since_s < params.lower_dwell_s:
        return view.verdict(current, Binding.DWELL, f"changed {since_s:.1f} s ago")
    gain = 1.0 - power[best] / power[current]
    if gain < params.min_gain_ratio and applied.clock_mhz is not None:
        binding, note = _why_not_lower(view, current)
        return view.verdict(current, binding, note)
    return None


def _why_not_lower(view: _View, i: int) -> tuple[Binding, str]:
    if i == 0:
        return Binding.LOWEST, "the lowest permitted clock"
    below = int(view.model.clocks_mhz[i - 1])
    broken = view.first_broken(i - 1)
    if broken is None:
        return Binding.ENERGY, f"{below} MHz would keep the promises but save nothing worth a switch"
    return Binding(broken.value), f"{below} MHz would break {broken.value.upper()}"
