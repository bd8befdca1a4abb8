"""What every view has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity: an unbounded forecast is shown as null."""
    return value if float("-inf") < value < float("inf") else None
