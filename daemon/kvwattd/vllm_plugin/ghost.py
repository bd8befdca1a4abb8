"""What would have come of the request that is held: an estimate of the preemptions avoided.

vLLM starts the first one waiting as soon as its tokens have room, and preempts the last one started when
the cache is full. So while a request is held, its ghost runs: it begins when its blocks are free, grows by
a token per step, and is preempted when they are free no more. Each such end is a preemption avoided. Only
the first one waiting has a ghost, so this is less than what is avoided.
"""

from __future__ import annotations


class Ghost:
    """Feed `held` in each step in which somebody is held, `released` otherwise."""

    def __init__(self) -> None:
        self._who: str | None = None
        self._tokens = 0
        self.avoided = 0
        self.requests = 0  # that were held

    def held(self, who: str, tokens: int, free_blocks: int, block_size: int) -> None:
        """`tokens`: of the request held; a step passes."""
        if who != self._who:
            self._who, self._tokens = who, 0
            self.requests += 1
        if not self._tokens:
            self._tokens = tokens if -(-tokens // block_size) <= free_blocks else 0
            return
        self._tokens += 1
        if -(-self._tokens // block_size) > free_blocks:
            self.avoided += 1
            self._tokens = 0

    def released(self) -> None:
        """Nobody is held."""
        self._who = None
