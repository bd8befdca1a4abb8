"""kvwatt's own model of a plant: trained on a noisy virtual profile of it, kept in the cache folder."""

from __future__ import annotations

from functools import lru_cache

from kvwatt.artifact import load_compiled
from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape
from kvwatt_sim.cards import Card
from kvwatt_sim.demo.model import cached_model


@lru_cache(maxsize=16)
def compiled_model(card: Card, clocks_mhz: tuple[int, ...], shape: EngineShape) -> CompiledModel:
    """The table for these clocks; trains when there is no model of this card yet."""
    return load_compiled(cached_model(card), clocks_mhz, shape)
