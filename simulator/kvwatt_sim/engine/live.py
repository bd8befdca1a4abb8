"""The engine's own book of a request, and the decodes kept as offsets from a common step counter."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

from kvwatt.state import RequestState
from kvwatt_sim.engine.types import FinishReason, Request, RequestRecord


class Phase(Enum):
    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    GONE = auto()


class Live:
    """A request inside the engine. `generated`, `computed` and `blocks` hold outside DECODE only:
    there the group knows them (see `DecodeGroup`)."""

    __slots__ = (
        "blocks",
        "cached",
        "computed",
        "finish_at",
        "first_scheduled_s",
        "first_token_s",
        "generated",
        "held",
        "kv_offset",
        "output_offset",
        "phase",
        "preemptions",
        "request",
        "total",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.total = request.total_output_tokens
        self.phase = Phase.WAITING
        self.generated = 0
        self.computed = 0
        self.blocks = 0
        self.cached = 0
        self.preemptions = 0
        self.held = False
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.kv_offset = 0
        self.output_offset = 0
        self.finish_at = 0

    @property
    def target(self) -> int:
        """Tokens to have in the cache before the next one can be generated, outside DECODE."""
        return self.request.prompt_tokens + self.generated

    def record(self, reason: FinishReason, end_s: float, last_token_s: float | None) -> RequestRecord:
        return RequestRecord(
            request=self.request,
            reason=reason,
            first_scheduled_s=self.first_scheduled_s,
            first_token_s=self.first_token_s,
            last_token_s=last_token_s,
            finished_s=end_s,
            output_tokens=self.generated,
            num_preemptions=self.preemptions,
            cached_tokens=self.cached,
        )


class DecodeGroup:
    """Requests that each compute one token in every step.

    Because all advance together, a member's KV length and output count are offsets from the number of
    decode steps so far, and a step costs the same whatever the batch: the members that need a block
    are those whose offset has one remainder, and those that finish were filed under that step.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._steps = 0
        self._members: dict[str, Live] = {}
        self._by_remainder = [0] * block_size
        self._offset_sum = 0
        self._finish_at: dict[int, list[Live]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        """Identifiers of the members."""
        return iter(self._members)

    @property
    def kv_tokens(self) -> int:
        """KV cache of all members, in tokens."""
        return self._offset_sum + len(self._members) * self._steps

    @property
    def blocks_needed(self) -> int:
        """New blocks that the next step needs: one per member whose blocks are full."""
        return self._by_remainder[-self._steps % self._block_size]

    def state_of(self, live: Live) -> RequestState:
        """Progress of any request, a member or not."""
        member = live.phase is Phase.DECODE
        request = live.request
        return RequestState(
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            computed_prompt_tokens=request.prompt_tokens if member else live.computed,
            output_tokens=live.output_offset + self._steps if member else live.generated,
            max_tokens=request.max_tokens,
            first_token_s=live.first_token_s,
        )

    def needs_block(self, live: Live) -> bool:
        return (live.kv_offset + self._steps) % self._block_size == 0

    def advance(self) -> None:
        """Every member computes one more token."""
        self._steps += 1

    def join(self, live: Live) -> None:
        """`live` has its target in the cache and one generated token that is not."""
        live.phase = Phase.DECODE
        live.kv_offset = live.computed - self._steps
        live.output_offset = live.generated - self._steps
        live.finish_at = live.total - live.output_offset
        self._members[live.request.request_id] = live
        self._by_remainder[live.kv_offset % self._block_size] += 1
        self._offset_sum += live.kv_offset
        self._finish_at.setdefault(live.finish_at, []).append(live)

    def leave(self, live: Live, in_flight: bool) -> None:
        """Give `live` its own numbers back; a token still in flight is not generated yet."""
        del self._members[live.request.request_id]
        self._by_remainder[live.kv_offset % self._block_size] -= 1
        self._offset_sum -= live.kv_offset
        live.computed = live.kv_offset + self._steps
        live.generated = live.output_offset + self._steps - (1 if in_flight else 0)
        live.blocks = -(-live.computed // self._block_size)

    def finished(self) -> list[Live]:
        """Members whose last token the current step generated, in the order in which they joined."""
        filed = self._finish_at.pop(self._steps, ())
        # Preempted and back, a request may be filed twice: under another step, or twice under this one.
        current = (live for live in filed if live.finish_at == self._steps)
        return [live for live in dict.fromkeys(current) if self._is_member(live)]

    def _is_member(self, live: Live) -> bool:
        return self._members.get(live.request.request_id) is live
