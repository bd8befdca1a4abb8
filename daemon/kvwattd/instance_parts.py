"""What an instance's state is made of: a clock by hand, a decision as it is shown, the model in use."""

from __future__ import annotations

from dataclasses import dataclass

from kvwatt.compiled import CompiledModel
from kvwatt.state import Decision
from kvwattd.regime import Regime


@dataclass(frozen=True, slots=True)
class Override:
    """A clock by hand until a moment; None holds driver default."""

    clock_mhz: int | None
    until_s: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as it is shown: with its regime and whether it reached the GPUs."""

    decision: Decision
    regime: Regime
    applied: bool


@dataclass
class ModelSlot:
    """The compiled model of this instance, or why there is none."""

    compiled: CompiledModel | None = None
    missing: str | None = "no model loaded yet"
    refused: bool = False
    power_error_ratio: float = 0.0  # mean, on loads it had not seen
