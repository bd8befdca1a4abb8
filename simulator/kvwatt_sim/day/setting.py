"""The days that are compared: which members on which GPUs, which requests, which promises. All in one place.

`l20-parked`, `l20-stopped`: four L20, a member each; a GPU without a process draws the card's parked power
(36 W), or nothing (switched off, or given to somebody else). The day's highest window asks for PEAK of what
four hold at capacity, so that three cannot serve it. Promises: the paper's preset for one L20.

`a100`: eight A100 that may hold one engine of TP 4, two of TP 2 and four of TP 1, no GPU two at a time; TP 2
and TP 1 lie beside TP 4, so that an engine can start while the one before it serves (the paper's shadow
instancing). Free GPUs are released and draw nothing: the fixed TP 4 is charged for its four GPUs only.
The highest window asks for PEAK of TP 4's capacity. Promises: the paper's preset for TP 4, whichever serves.

Capacity is `replay.scenario.capacity`: the highest rate with p99 TTFT of 3 s at the top clock, on the Azure
conversation trace with its bursts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kvwatt_sim.cards import Card
from kvwatt_sim.day.server import Kind
from kvwatt_sim.day.traffic import day_requests, scaled
from kvwatt_sim.gpu import power_w
from kvwatt_sim.replay import scenario
from kvwatt_sim.replay.scenario import Promises
from kvwatt_sim.traces import TraceRequest

NAMES = ("l20-parked", "l20-stopped", "a100")
PEAK = 0.9
PRESET = "paper"
# Assumed: a cold start of vLLM takes 30 to more than 100 s, a wake-up from sleep level 1 with a warm-up
# request 0.1 to 6 s (vLLM project blog, 2025-10-26, several models and GPUs).
START_S, WAKE_S = 60.0, 3.0
STARTING_RATIO = 1.25  # assumed: watts while loading over those of an idle engine at driver default
L20S = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A member and the GPUs it would hold."""

    name: str
    kind: Kind
    gpus: frozenset[str]


@dataclass(frozen=True, slots=True)
class Setting:
    """One day but for who decides. `rates_per_s`: of its windows, which nobody but an oracle may see.

    `parked_w`: of a GPU that no member holds. `reference`: the members of the fixed pool that savings are
    told against; everybody begins the day with them ready."""

    name: str
    places: tuple[Place, ...]
    gpus: frozenset[str]
    parked_w: float
    reference: tuple[str, ...]
    requests: tuple[TraceRequest, ...]
    rates_per_s: tuple[float, ...]
    day_s: float
    promises: Promises

    @property
    def ready_at_start(self) -> tuple[str, ...]:
        return self.reference

    @property
    def until_s(self) -> float:
        """Until when everybody is charged."""
        return self.day_s

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return {place.kind.name: place.kind for place in self.places}

    @property
    def window_s(self) -> float:
        return self.day_s / len(self.rates_per_s)


def setting(
    name: str, rates: Sequence[float], source: Sequence[TraceRequest], day_s: float, seed: int
) -> Setting:
    """`rates`: the shape, in any unit; `source`: the trace that lengths and bursts come from.

    Raises ValueError for a name that is none of NAMES."""
    if name not in NAMES:
        raise ValueError(f"setting = {name!r}: one of {', '.join(NAMES)} is accepted")
    places, parked_w, reference = _a100(source) if name == "a100" else _l20(source, name)
    by_name = {place.name: place for place in places}
    card = by_name[reference[0]].kind.card
    fitted, promises = _traffic(by_name[reference[0]].kind.name, card, tuple(source))
    peak = PEAK * sum(by_name[member].kind.capacity_per_s for member in reference)
    wanted = scaled(rates, peak)
    return Setting(
        name=name,
        places=places,
        gpus=frozenset(gpu for place in places for gpu in place.gpus),
        parked_w=parked_w,
        reference=reference,
        requests=day_requests(wanted, fitted, day_s, seed),
        rates_per_s=wanted,
        day_s=day_s,
        promises=promises,
    )


@lru_cache(maxsize=4)
def _traffic(
    kind: str, card: Card, source: tuple[TraceRequest, ...]
) -> tuple[tuple[TraceRequest, ...], Promises]:
    """The trace as it fits the card, and what is promised of it."""
    fitted = scenario.fitted(card, source)
    return fitted, scenario.promises(card, PRESET, fitted)


@lru_cache(maxsize=8)
def kind_of(plant: str, source: tuple[TraceRequest, ...]) -> Kind:
    """The engine shape called `l20`, `a100-tp2` ...; finds its capacity (some seconds, once)."""
    card = scenario.plant(plant)
    shape = scenario.shape_for(card, PRESET)
    clocks = scenario.clocks(card)
    found = scenario.capacity(card, shape, scenario.fitted(card, source))
    return Kind(
        name=f"tp{card.tp}",
        card=card,
        shape=shape,
        clocks_mhz=clocks,
        capacity_per_s=found.rate_per_s,
        start_s=START_S,
        wake_s=WAKE_S,
        starting_w=STARTING_RATIO * card.tp * power_w(card, card.boost_mhz, 0.0, 0.0),
        asleep_w=card.tp * power_w(card, clocks[0], 0.0, 0.0),
    )


def _l20(source: Sequence[TraceRequest], name: str) -> tuple[tuple[Place, ...], float, tuple[str, ...]]:
    kind = kind_of("l20", tuple(source))
    places = tuple(Place(f"l20-{i}", kind, frozenset({f"g{i}"})) for i in range(L20S))
    parked_w = kind.card.parked_w if name == "l20-parked" else 0.0
    return places, parked_w, tuple(place.name for place in places)


def _a100(source: Sequence[TraceRequest]) -> tuple[tuple[Place, ...], float, tuple[str, ...]]:
    four, two, one = (kind_of(f"a100-tp{tp}", tuple(source)) for tp in (4, 2, 1))
    places = [Place("tp4", four, frozenset({"g0", "g1", "g2", "g3"}))]
    places += [Place(f"tp2-{i}", two, frozenset({f"g{4 + 2 * i}", f"g{5 + 2 * i}"})) for i in range(2)]
    places += [Place(f"tp1-{i}", one, frozenset({f"g{7 - i}"})) for i in range(4)]
    return tuple(places), 0.0, ("tp4",)
