"""Measured energy by what it went into, per token and per request."""

from __future__ import annotations

from pydantic import Field

from kvwattd.api.schemas.base import View


class RequestEnergyView(View):
    """Joules attributed to one finished request."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    joules: float
    parts_j: dict[str, float] = Field(default_factory=dict)


class AttributionView(View):
    """Measured energy by what it went into; the parts add up to the counter. Idle energy is nobody's."""

    parts_j: dict[str, float] = Field(default_factory=dict)
    output_tokens_total: float = 0.0
    requests_total: float = 0.0
    attributed_total: int = Field(0, description="requests that ended with joules of their own")
    output_token_j: float | None = Field(None, description="of the last minutes, idle energy left out")
    output_token_whole_j: float | None = Field(None, description="of the last minutes, idle energy included")
    request_j: float | None = Field(None, description="mean of the last minutes, idle energy left out")
    request_p50_j: float | None = Field(None, description="of the newest requests that were told one by one")
    request_p99_j: float | None = None
    newest: list[RequestEnergyView] = Field(default_factory=list, description="at most 16, newest first")
