"""What goes into the engine and what comes out. Times are seconds on the caller's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import NamedTuple


class FinishReason(StrEnum):
    """vLLM's `finished_reason` label."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class EventKind(StrEnum):
    """FIRST and TOKEN are one output token each; FINISHED follows a request's last token."""

    FIRST = "first"
    TOKEN = "token"  # noqa: S105 - an output token, no secret
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `output_tokens` is where it would stop by itself, `max_tokens` where it is cut."""

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.arrival_s):
            raise ValueError(f"arrival_s = {self.arrival_s!r}: a finite number is needed")
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: at least 1 is needed")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens = {self.max_tokens!r}: at least 1, or None, is needed")

    @property
    def total_output_tokens(self) -> int:
        """Tokens that it generates when nobody aborts it."""
        return self.output_tokens if self.max_tokens is None else min(self.output_tokens, self.max_tokens)

    @property
    def finish_reason(self) -> FinishReason:
        """LENGTH when `max_tokens` cuts it, STOP when it ends by itself."""
        cut = self.max_tokens is not None and self.output_tokens >= self.max_tokens
        return FinishReason.LENGTH if cut else FinishReason.STOP


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request's life, as the per-request metrics need it. None: it never came that far."""

    request: Request
    reason: FinishReason
    first_scheduled_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    finished_s: float
    output_tokens: int
    num_preemptions: int
    cached_tokens: int


class TokenEvent(NamedTuple):
    """Something that happened to a request at the end of a step; `record` comes with FINISHED."""

    request_id: str
    t_s: float
    kind: EventKind
    record: RequestRecord | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One engine step: what the step law needs, and who takes part.

    `kv_tokens`: KV cache read by the decodes, the tokens being computed included.
    `prefill_context_tokens`: the context behind `prefill_tokens` taken as one chunk that has as many
    query-key pairs as the real chunks together; negative for several short prompts.
    `preempted`: requests thrown out of the batch while planning.
    """

    step_index: int
    start_s: float
    decode_batch: int
    kv_tokens: int
    prefill_tokens: int
    prefill_context_tokens: float
    prefill_ids: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()

    @property
    def scheduled_tokens(self) -> int:
        """Tokens computed in this step: at most `max_num_batched_tokens`."""
        return self.decode_batch + self.prefill_tokens


@dataclass(slots=True)
class Counters:
    """Totals since the engine's start.

    Prompt tokens count when their prefill ends, as in vLLM; `computed_tokens` counts everything that
    was scheduled, recomputation after preemption included.
    """

    steps: int = 0
    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    generation_tokens: int = 0
    computed_tokens: int = 0
    preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FinishReason, 0))
