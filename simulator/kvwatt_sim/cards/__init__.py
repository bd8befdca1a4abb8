"""Hardware cards: what a GPU and a model on it are in numbers, each with where it comes from."""

from kvwatt_sim.cards.card import Card, CardError, Provenance
from kvwatt_sim.cards.load import load, names

__all__ = ["Card", "CardError", "Provenance", "load", "names"]
