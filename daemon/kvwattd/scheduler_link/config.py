"""Keys of [scheduler]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from kvwattd.config_values import Seconds


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError("must be an absolute path")
    return value


class SchedulerConfig(BaseModel):
    """What kvwatt's scheduler inside vLLM is told; without a file it goes by what it sees itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Annotated[Path, AfterValidator(_absolute)] | None = None
    kv_budget: bool = False
    order: Literal["arrival", "smallest"] = "arrival"
    age_s: Seconds = 10.0
    admission: Literal["overflow", "throttllem"] = "overflow"

    @model_validator(mode="after")
    def _told_somewhere(self) -> Self:
        wanted = self.kv_budget or self.order != "arrival" or self.admission != "overflow"
        if wanted and self.file is None:
            raise ValueError("kv_budget, order and admission need file: without it nothing is told")
        return self
