"""Those inside the engine: what they hold and will still make, in tokens, and whether one more fits.

Blocks are counted half full at a request's end. Where prompts share blocks, those inside hold fewer blocks
than they would alone; whoever comes is taken to share as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvwatt.scheduling.proj import peak_of
from kvwattd.vllm_plugin.lengths import Lengths
from kvwattd.vllm_plugin.told import Told


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
    """One who may start."""

    held: int
    left: int
    rank: tuple[int, float]


class Inside:
    """Built anew when it is asked for; `enter` adds who starts. Lists of shape (n,)."""

    def __init__(
        self,
        running: Sequence[Sequenced],
        lengths: Lengths,
        told: Told | None,
        block_size: int,
        used_blocks: int,
    ) -> None:
        self._lengths, self._told, self._half = lengths, told, block_size // 2
        alone = sum(-(-r.num_computed_tokens // block_size) for r in running)
        self._shared = min(used_blocks / alone, 1.0) if alone and used_blocks > 0 else 1.0
        half, shared, left = self._half, self._shared, lengths.left
        self.held = [int((r.num_tokens + half) * shared) for r in running]
        self.left = [left(r, told) for r in running]
        self.ranks = [(r.priority, r.arrival_time) for r in running]
        self.total = sum(self.held)

    def newcomer(self, request: Sequenced) -> Newcomer:
        """What it would hold and make."""
        held = int((request.num_tokens + self._half) * self._shared)
        left = self._lengths.left(request, self._told)
        return Newcomer(held, left, (request.priority, request.arrival_time))

    def enter(self, new: Newcomer) -> None:
        """It starts."""
        self.held.append(new.held)
        self.left.append(new.left)
        self.ranks.append(new.rank)
        self.total += new.held

    def fits(self, new: Newcomer, steps: int, room_tokens: int, by_priority: bool = False) -> bool:
        """PROJ over so many steps. By priority only those count that would not be preempted before it."""
        if self.total + new.held + (len(self.held) + 1) * steps <= room_tokens:
            return True  # even if nobody leaves
        held, left = self.held, self.left
        if by_priority:
            kept = [i for i, rank in enumerate(self.ranks) if rank <= new.rank]
            held, left = [held[i] for i in kept], [left[i] for i in kept]
        # All that outlive the horizon count alike, and first: one entry stands for them.
        short = [(r, h) for h, r in zip(held, left, strict=True) if r < steps]
        stay = sum(held) - sum(h for _, h in short) + (len(held) - len(short)) * steps
        if new.left < steps:
            short.append((new.left, new.held))
        else:
            stay += new.held + steps
        if stay > room_tokens:
            return False
        staying = len(held) + 1 - len(short)
        pairs = [(steps, 0)] * staying
        if staying:
            pairs[0] = (steps, stay - staying * steps)
        short.sort(reverse=True)
        return peak_of([*pairs, *short]) <= room_tokens
