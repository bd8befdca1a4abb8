"""What kvwatt's scheduler inside vLLM tells."""

from __future__ import annotations

from pydantic import Field

from kvwattd.api.schemas.base import View


class SchedulerView(View):
    """Totals are since the engine's start."""

    age_s: float = Field(description="age of the newest record; about a second while the engine steps")
    steps_total: int
    cap_tokens: int = Field(description="output tokens that a new request is expected to make")
    horizon_steps: int = Field(description="steps that a request should live before the KV cache overflows")
    held: int = Field(description="requests that wait while one of them is held back")
    held_total: int = Field(description="requests held back at least once")
    held_steps_total: dict[str, int] = Field(
        description="steps in which one was held, by reason: overflow, budget, tbt, e2e"
    )
    preemptions_avoided_total: int = Field(description="an estimate, on the low side")
    faults_total: int = Field(description="steps left to vLLM's default by an exception")
    told: bool = Field(description="it has a fresh message of the daemon")
    message_errors_total: int = Field(description="messages that it could not read")
    aside: str | None = Field(None, description="why it does nothing at all, if so")
