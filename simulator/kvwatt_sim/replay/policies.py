"""The policies that can be compared, by name: each serves a case and gives what came of it.

Most are a controller that is asked again and again (`controlled`); those that search in hindsight
replay the case many times. A name may carry a number after its last dash: `fixed-1200`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvwatt.policy import PolicyParams
from kvwatt_sim.replay.controller import Controller, FixedClock, replay
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.scenario import QUANTILE, Case

Policy = Callable[[Case], Outcome]


class PolicyError(ValueError):
    """A policy that does not exist; names it and what is accepted."""


def controlled(factory: Callable[[Case], Controller]) -> Policy:
    """The policy that drives `case` by a fresh controller of `factory`."""

    def run(case: Case) -> Outcome:
        return replay(case.card, case.shape, case.requests, factory(case), case.until_s)

    return run


def kvwatt(case: Case) -> Controller:
    """kvwatt with its usual settings and a model trained on the plant's profile."""
    return KvwattController(
        case.card,
        case.shape,
        compiled_model(case.card, case.clocks_mhz, case.shape),
        case.promises.slo,
        PolicyParams(reaction_s=0.8),
    )


def best_fixed(case: Case) -> Outcome:
    """In hindsight: of all clocks the one of least energy that keeps every promise.

    Where none does, the one that keeps most of them.
    """
    outcomes = [
        replay(case.card, case.shape, case.requests, FixedClock(clock), case.until_s)
        for clock in case.clocks_mhz
    ]
    kept = [worst_attainment(case, outcome) for outcome in outcomes]
    feasible = [outcome for outcome, share in zip(outcomes, kept, strict=True) if share >= QUANTILE]
    if feasible:
        return min(feasible, key=lambda outcome: outcome.energy_j)
    return outcomes[kept.index(max(kept))]


def worst_attainment(case: Case, outcome: Outcome) -> float:
    """The share kept of the promise that was kept least."""
    return min(outcome.attainment(case.promises.slo, case.promises.itl_s).values())


def policy(name: str) -> Policy:
    """The policy called `name`. Raises PolicyError."""
    base, _, number = name.rpartition("-")
    if base == "fixed" and number.isdigit():
        return controlled(lambda _: FixedClock(int(number)))
    if name not in POLICIES:
        known = ", ".join((*POLICIES, "fixed-MHZ"))
        raise PolicyError(f"policy = {name!r}: one of {known} is accepted")
    return POLICIES[name]


POLICIES: Mapping[str, Policy] = {
    "kvwatt": controlled(kvwatt),
    "max": controlled(lambda _: FixedClock(None)),
    "best-fixed": best_fixed,
}
