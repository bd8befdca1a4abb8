"""The step-time and power model: its versions and its refits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvwattd.api.schemas.base import View
from kvwattd.config_values import JSON_NUMBER, Ordinal

ModelState = Literal["ready", "missing", "learning", "refused"]
RefitOutcome = Literal["promoted", "kept", "too_few", "failed"]


class RefitView(View):
    """Refitting the model to what is served, in a process of its own."""

    enabled: bool
    samples: int = Field(0, description="operating points kept")
    last: RefitOutcome | None = Field(None, description="outcome of the latest refit")
    reason: str = ""
    finished_unix_s: float | None = None
    outcomes_total: dict[RefitOutcome, int] = Field(default_factory=dict)


class EnergyModelView(View):
    """The model of the energy of ten-second windows, learned while serving. It decides nothing."""

    windows: int = Field(0, description="windows kept to learn from")
    windows_dropped_total: int = Field(0, description="windows that could not be told of")
    learned: bool = Field(False, description="false: the step model's law alone speaks")
    accuracy_ratio: float | None = Field(
        None, description="1 - mean |predicted / counted - 1| over windows that it had not seen"
    )
    importance: dict[str, float] = Field(
        default_factory=dict, description="accuracy lost when a factor is shuffled, the largest"
    )
    last: RefitOutcome | None = Field(None, description="outcome of the latest refit")
    reason: str = ""
    finished_unix_s: float | None = None
    outcomes_total: dict[RefitOutcome, int] = Field(default_factory=dict)


class ModelVersionView(View):
    """One version of a model: 0 was shipped, the others were refitted online."""

    version: int
    serving: bool
    state: Literal["sound", "damaged", "other_base"] = Field(
        description="only a sound version may serve; other_base was refitted from another shipped model"
    )
    detail: str = ""
    created: str | None = None
    parent: int | None = Field(None, description="the version it was compared with")
    samples: int | None = Field(None, description="newest operating points that both were compared on")
    champion_error_ratio: float | None = None
    challenger_error_ratio: float | None = None
    reason: str = ""


class ModelVersionsView(View):
    instance: str
    serving: int | None = Field(description="version in use; null without a model")
    held: bool = Field(description="true after a rollback: no refit replaces the version in use")
    versions: list[ModelVersionView]
    refit: RefitView


class RollbackRequest(View):
    """Back to a version; null is the one before that in use. `hold` keeps refits from replacing it."""

    version: Annotated[Ordinal, JSON_NUMBER] | None = None
    hold: Annotated[bool, Field(strict=True)] = True


class ModelView(View):
    """The step-time and power model in use for one instance."""

    state: ModelState
    reason: str = ""
    path: str | None = None
    version: int | None = Field(None, description="0 is the shipped model, others were refitted online")
    refit: RefitView | None = None
    energy: EnergyModelView | None = None
    hardware: str | None = None
    vllm_version: str | None = None
    created: str | None = None
    samples: int | None = None
    step_error_ratio: float | None = Field(None, description="median |predicted / measured - 1| when trained")
    power_error_ratio: float | None = None
    upper_factor: float | None = None
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
