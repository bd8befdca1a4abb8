"""Which regime an instance is in: a table of states and events, and the one place that reads it.

    STARTING --observed--> LEARNING --model--> SHADOW or ACTIVE
        any  --untrusted--> FAILSAFE --trusted again for a while--> back
        any  --operator--> OVERRIDE (a clock by hand, for a limited time) or OFF
        any  --pool------> PARKED (stopped, asleep or starting, as intended) --serves--> STARTING

Only ACTIVE and OVERRIDE hold a clock, and PARKED the lowest one on an engine that sleeps; in every other
regime the GPUs run at driver default.
Every unknown leads to FAILSAFE.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kvwattd.config import Mode


class Regime(StrEnum):
    OFF = "off"
    STARTING = "starting"
    LEARNING = "learning"
    SHADOW = "shadow"
    ACTIVE = "active"
    FAILSAFE = "failsafe"
    OVERRIDE = "override"
    PARKED = "parked"


class Event(StrEnum):
    """What the facts of one tick amount to, the gravest first."""

    SWITCHED_OFF = "switched_off"
    RESTING = "resting"
    NOT_YET_OBSERVED = "not_yet_observed"
    UNTRUSTED = "untrusted"
    OVERRIDDEN = "overridden"
    NO_MODEL = "no_model"
    SHADOWED = "shadowed"
    CLEAR = "clear"


HOLDS_CLOCK = frozenset({Regime.ACTIVE, Regime.OVERRIDE})
DECIDES = frozenset({Regime.ACTIVE, Regime.SHADOW})

_FROM_ANYWHERE = {
    Event.SWITCHED_OFF: Regime.OFF,
    Event.RESTING: Regime.PARKED,
    Event.NOT_YET_OBSERVED: Regime.FAILSAFE,
    Event.UNTRUSTED: Regime.FAILSAFE,
    Event.OVERRIDDEN: Regime.OVERRIDE,
    Event.NO_MODEL: Regime.LEARNING,
    Event.SHADOWED: Regime.SHADOW,
    Event.CLEAR: Regime.ACTIVE,
}
# What holds no clock may still be getting ready; what held one and lost sight of its engine has failed.
_GETTING_READY = {**_FROM_ANYWHERE, Event.NOT_YET_OBSERVED: Regime.STARTING}

TABLE: dict[Regime, dict[Event, Regime]] = {
    Regime.STARTING: _GETTING_READY,
    Regime.OFF: _GETTING_READY,
    Regime.LEARNING: _GETTING_READY,
    Regime.SHADOW: _GETTING_READY,
    Regime.ACTIVE: _FROM_ANYWHERE,
    Regime.FAILSAFE: _FROM_ANYWHERE,
    Regime.OVERRIDE: _FROM_ANYWHERE,
    Regime.PARKED: _GETTING_READY,
}
# Led to by an intention, not by what is trusted: FAILSAFE need not be recovered from first.
_INTENDED = frozenset({Regime.FAILSAFE, Regime.OFF, Regime.PARKED})


@dataclass(frozen=True, slots=True)
class Facts:
    """What one tick knows.

    `fault`: why input or actuation cannot be trusted; `pending`: what has not been there yet; `resting`: why
    nothing of this engine is to be expected, where that is intended.
    """

    mode: Mode
    pending: str | None
    fault: str | None
    overridden: bool
    model_missing: str | None
    resting: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A regime, since when, and why."""

    regime: Regime
    since_s: float
    reason: str


def classify(facts: Facts) -> tuple[Event, str]:
    """The gravest event wins; nothing is assumed to be fine."""
    if facts.mode is Mode.OFF:
        return Event.SWITCHED_OFF, "switched off by the operator"
    if facts.resting is not None:
        return Event.RESTING, facts.resting
    if facts.fault is not None:
        return Event.UNTRUSTED, facts.fault
    if facts.pending is not None:
        return Event.NOT_YET_OBSERVED, f"waiting for {facts.pending}"
    if facts.overridden:
        return Event.OVERRIDDEN, "clock set by the operator"
    if facts.model_missing is not None:
        return Event.NO_MODEL, facts.model_missing
    if facts.mode is Mode.SHADOW:
        return Event.SHADOWED, "shadow mode: decides and writes nothing"
    return Event.CLEAR, "in control"


def advance(
    standing: Standing, facts: Facts, now_s: float, trusted_since_s: float, recover_s: float
) -> Standing:
    """The next standing. FAILSAFE is left only after `recover_s` seconds without a fault."""
    event, reason = classify(facts)
    target = TABLE[standing.regime][event]
    leaving_failsafe = standing.regime is Regime.FAILSAFE and target not in _INTENDED
    if leaving_failsafe and now_s - trusted_since_s < recover_s:
        target, reason = (
            Regime.FAILSAFE,
            f"recovering: trusted for {now_s - trusted_since_s:.1f} s of {recover_s:g} s",
        )
    since_s = standing.since_s if target is standing.regime else now_s
    return Standing(target, since_s, reason)
