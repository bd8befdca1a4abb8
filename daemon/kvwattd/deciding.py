"""From what is observed of one instance to a decision: the last one while its inputs stand, else a new one.

No I/O; the only clock read times `decide` itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

from kvwatt.compiled import CompiledModel
from kvwatt.policy import Applied, Bounds, Budget, PolicyParams, decide
from kvwatt.state import Binding, Decision, EngineShape, EngineSnapshot, EngineState, Slo
from kvwatt.traffic import Traffic
from kvwattd.durations import Durations


class Inputs(NamedTuple):
    """All that a decision depends on but the time and the engine's shape, which is the page's."""

    page: EngineSnapshot
    state: EngineState
    traffic: Traffic
    model: CompiledModel
    slo: Slo
    bounds: Bounds
    params: PolicyParams
    applied: Applied
    budget: Budget


@dataclass
class Deciding:
    """Keeps the last inputs and what was decided on them."""

    durations: Durations
    _last: tuple[Inputs, Decision] | None = None
    _params: tuple[PolicyParams, float, PolicyParams] | None = None

    def decision(self, now_s: float, inputs: Inputs, shape: EngineShape) -> Decision:
        """The last decision where nothing it depends on has changed, else a new one."""
        return self._standing(now_s, inputs) or self._new(now_s, inputs, shape)

    def _new(self, now_s: float, inputs: Inputs, shape: EngineShape) -> Decision:
        _, state, traffic, model, slo, bounds, params, applied, budget = inputs
        started = perf_counter()
        decision = decide(now_s, state, traffic, shape, model, slo, bounds, params, applied, budget)
        self.durations.observe(perf_counter() - started)
        self._last = (inputs, decision)
        return decision

    def _standing(self, now_s: float, inputs: Inputs) -> Decision | None:
        """Of the time a decision depends only through ages, which are inputs, and through the dwell."""
        if self._last is None:
            return None
        before, decision = self._last
        if decision.binding is Binding.DWELL or any(a is not b for a, b in zip(inputs, before, strict=True)):
            return None
        return replace(decision, decided_s=now_s)

    def params(self, settings: PolicyParams, later_s: float) -> PolicyParams:
        """`settings` with a reaction so many seconds later: the same object while both are the same."""
        reaction_s = settings.reaction_s + later_s
        if self._params is None or self._params[0] is not settings or self._params[1] != reaction_s:
            self._params = (settings, reaction_s, replace(settings, reaction_s=reaction_s))
        return self._params[2]


def at_default(now_s: float, reason: str) -> Decision:
    """Driver default, for want of something to decide on."""
    return Decision(now_s, None, Binding.NONE, f"driver default: {reason}")


def never_lower(decision: Decision, held_mhz: int | None, now_s: float) -> Decision:
    """After a failed poll or on an older page: a clock may rise, never fall."""
    if decision.clock_mhz is None or (held_mhz is not None and decision.clock_mhz >= held_mhz):
        return decision
    reason = "the latest poll failed or is late: nothing is lowered on old data"
    if held_mhz is None:
        return at_default(now_s, reason)
    told = f"{held_mhz} MHz held: {reason}"
    return replace(decision, clock_mhz=held_mhz, binding=Binding.DWELL, reason=told)
