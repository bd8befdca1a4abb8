"""What daemon and worker tell each other, as files in one folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kvwatt.energy_learning import Counted
from kvwattd.api.schemas import RefitOutcome
from kvwattd.refit_worker import Shape

JOB, RESULT, MODEL = "job.json", "result.json", "energy.json"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Message):
    """`Counted`; a factor that nobody tells is null."""

    number: int
    row: list[float | None]
    energy_j: float

    @classmethod
    def of(cls, window: Counted) -> Row:
        row = [value if value == value else None for value in window.row]  # NaN is not equal to itself
        return cls(number=window.number, row=row, energy_j=window.energy_j)

    def counted(self) -> Counted:
        """The reverse. Raises ValueError for a window that cannot be."""
        row = tuple(float("nan") if value is None else value for value in self.row)
        return Counted(self.number, row, self.energy_j)


class Kept(_Message):
    """An instance's windows and the energy model that serves, on disk. `model`: empty for the shipped law."""

    seen_through: int = 0
    scored_through: int = 0
    accuracy: float | None = None
    importance: dict[str, float] = {}
    model: str = ""
    windows: list[Row] = []


class Job(_Message):
    """`step_model`: the artifact whose compiled table is the prior; the rest as in `Kept`."""

    step_model: Path
    clocks_mhz: tuple[int, ...]
    shape: Shape
    kept: Kept


class Result(_Message):
    """The verdict. `accuracy`: 1 - MAPE of the model that served, on windows it had not seen; null where
    there are too few. `importance`: accuracy lost by shuffling a factor, of the model that serves now."""

    outcome: RefitOutcome
    reason: str
    accuracy: float | None = None
    scored_through: int = 0
    trained_through: int = 0
    importance: dict[str, float] = {}
