"""Those inside the engine: what they hold and will still make, in tokens, and whether to hold one more.

Where prompts share blocks, those inside hold fewer blocks than they would alone; whoever comes is taken to
share as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvwatt.scheduling.proj import fits
from kvwatt.scheduling.worth import LEAST_HORIZON, Seat, holding_pays, horizon_steps
from kvwattd.vllm_plugin.lengths import Lengths
from kvwattd.vllm_plugin.told import Told

SHORTEST_STEPS = LEAST_HORIZON


class Sequenced(Protocol):
    """What is read of a request."""

    request_id: str
    num_tokens: int
    num_output_tokens: int
    num_computed_tokens: int
    max_tokens: int
    arrival_time: float
    priority: int


class Newcomer(NamedTuple):
    """One who may start; `share` of its tokens is in blocks of its own."""

    request: Sequenced
    seat: Seat
    rank: tuple[int, float]

    @property
    def horizon_steps(self) -> int:
        """An overflow so far off does not count."""
        return horizon_steps(self.seat)


class Inside:
    """Built anew when it is asked for; `enter` adds who starts. `used_blocks`: of the cache."""

    def __init__(
        self,
        running: Sequence[Sequenced],
        lengths: Lengths,
        told: Told | None,
        block_size: int,
        used_blocks: int,
    ) -> None:
        self._lengths, self._told, self._size = lengths, told, block_size
        alone = sum(-(-r.num_computed_tokens // block_size) for r in running)
        # As if nobody shared: what all would hold alone, for whom there are so many blocks more.
        self._sharing = max(alone - used_blocks, 0) if used_blocks > 0 else 0
        self._shared = min(used_blocks / alone, 1.0) if alone and used_blocks > 0 else 1.0
        self.requests = list(running)
        self.seats = [Seat(r.num_tokens, lengths.drawn(r, told)) for r in running]
        self.ranks = [(r.priority, r.arrival_time) for r in running]

    def newcomer(self, request: Sequenced) -> Newcomer:
        """What it would hold and make."""
        seat = Seat(int(request.num_tokens * self._shared), self._lengths.drawn(request, self._told))
        return Newcomer(request, seat, (request.priority, request.arrival_time))

    def enter(self, new: Newcomer) -> None:
        """It starts."""
        self.requests.append(new.request)
        self.seats.append(new.seat)
        self.ranks.append(new.rank)

    def holding_pays(self, new: Newcomer, horizon: int, room_blocks: int, by_priority: bool) -> bool:
        """By priority only those count that would not be preempted before it."""
        seats = self.seats
        if by_priority:
            seats = [seat for seat, rank in zip(seats, self.ranks, strict=True) if rank <= new.rank]
        return holding_pays(seats, new.seat, room_blocks + self._sharing, self._size, horizon)

    def blocks(self, new: Newcomer) -> int:
        """That all and the newcomer hold now."""
        tokens = [*(seat.tokens for seat in self.seats), new.seat.tokens]
        return sum(-(-n // self._size) for n in tokens) - self._sharing

    def expected(self, new: Newcomer) -> tuple[list[int], list[int]]:
        """Tokens held and, by medians, still to come of all inside and, last, of the newcomer."""
        held = [seat.tokens for seat in self.seats] + [new.seat.tokens]
        return held, [self._lengths.left(r, self._told) for r in (*self.requests, new.request)]

    def fits_to_the_end(self, new: Newcomer, room_blocks: int) -> bool:
        """PROJ by medians until the last one leaves, blocks half full at a request's end."""
        held, left = self.expected(new)
        room = (room_blocks + self._sharing) * self._size
        return fits([tokens + self._size // 2 for tokens in held], left, room)
