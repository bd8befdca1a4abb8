"""Which KV blocks of earlier requests are still there: by block hash, least recently used first to go.

As vLLM's automatic prefix caching (v1/core/block_pool.py): a full block is known by the hash of all tokens
up to its end; blocks in use are shared and counted by reference; a block that nobody uses stays until its
place is needed, and of one request the last block goes first. A cached block that nobody uses counts as free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PrefixCache:
    """Hashes of full blocks. `limit`: most blocks that nobody uses to keep, None for as many as fit."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.evicted = 0
        self._held: dict[int, int] = {}  # in use, by how many
        self._idle: OrderedDict[int, None] = OrderedDict()  # the first is the next to go

    @property
    def idle(self) -> int:
        """Blocks that nobody uses."""
        return len(self._idle)

    @property
    def held(self) -> int:
        """Blocks in use that others may share."""
        return len(self._held)

    def match(self, hashes: Iterable[int]) -> int:
        """How many of the first blocks are there."""
        count = 0
        for item in hashes:
            if item not in self._held and item not in self._idle:
                break
            count += 1
        return count

    def in_use(self, hashes: Sequence[int]) -> int:
        """How many of these are in use: they cost their next user no block."""
        return sum(item in self._held for item in hashes)

    def acquire(self, hashes: Sequence[int]) -> int:
        """Use blocks that `match` found; returns how many nobody used: so many free blocks are gone."""
        woken = 0
        for item in hashes:
            if item in self._held:
                self._held[item] += 1
            else:
                del self._idle[item]
                self._held[item] = 1
                woken += 1
        return woken

    def register(self, item: int) -> bool:
        """A block in use is full now and may be shared; False where another block has its content already."""
        if item in self._held or item in self._idle:
            return False
        self._held[item] = 1
        return True

    def release(self, hashes: Sequence[int]) -> int:
        """No longer use these blocks, in their order; returns how many others still use."""
        still = 0
        for item in reversed(hashes):
            self._held[item] -= 1
            if self._held[item]:
                still += 1
            else:
                del self._held[item]
                self._idle[item] = None
        return still

    def keep(self, hashes: Sequence[int]) -> None:
        """Full blocks that nobody shares and nobody uses any more: kept where their content is new."""
        for item in reversed(hashes):
            if item not in self._held:
                self._idle[item] = None
                self._idle.move_to_end(item)

    def trim(self, free_blocks: int) -> None:
        """Evict until no more are kept than there are free blocks, nor than `limit`."""
        most = max(free_blocks if self.limit is None else min(free_blocks, self.limit), 0)
        while len(self._idle) > most:
            self._idle.popitem(last=False)
            self.evicted += 1
