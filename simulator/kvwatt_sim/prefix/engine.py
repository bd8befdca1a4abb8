"""The simulated engine with a real prefix cache: hits follow from what is still in the pool.

More laws than the engine's own (each a test):
6. Blocks that nobody uses and are kept never outnumber the free ones.
7. A request computes at least the last token of its prompt; what it finds is a prefix in whole blocks.
8. When everybody has left, every block is free, and the pool is as large as before.
"""

from __future__ import annotations

from collections.abc import Callable

from kvwatt.state import EngineShape
from kvwatt_sim.engine import Engine, Request
from kvwatt_sim.engine.live import Live
from kvwatt_sim.engine.types import TokenEvent
from kvwatt_sim.prefix.cache import PrefixCache

Hashes = Callable[[int], int]  # of the request's n-th block, once it is full


class PrefixEngine(Engine):
    """As `Engine`, for requests that come with the hashes of their blocks.

    `admit_seqs`: requests that a batch may hold once another joins, None for the engine's own limit.
    """

    def __init__(self, shape: EngineShape, keep_blocks: int | None = None) -> None:
        super().__init__(shape, token_events=False)
        self.cache = PrefixCache(keep_blocks)
        self.admit_seqs: int | None = None
        self.hit_tokens = self.asked_tokens = self.started = 0
        self._hashes: dict[str, Hashes] = {}
        self._mine: dict[str, list[int]] = {}  # shared blocks that a request uses, in order

    def add_hashed(self, request: Request, hashes: Hashes) -> None:
        """Queue a request. Raises ValueError as `add` does."""
        self.add(request)
        self._hashes[request.request_id] = hashes
        self._mine[request.request_id] = []

    def _found(self, live: Live) -> list[int]:
        """Hashes of the blocks it would find; vLLM always computes at least the last token."""
        most = (live.target - 1) // self.shape.block_size
        hashes = [self._hashes[live.request.request_id](place) for place in range(most)]
        return hashes[: self.cache.match(hashes)]

    def _may_join(self, blocks: int) -> bool:
        if self.admit_seqs is not None and self._running and len(self._running) >= self.admit_seqs:
            return False
        if not super()._may_join(0):
            return False
        shared = self.cache.in_use(self._found(self._waiting[0]))
        return super()._may_join(blocks - shared)

    def _start(self, live: Live, now_s: float) -> None:
        new = live.first_scheduled_s is None
        super()._start(live, now_s)
        found = self._found(live)
        self._mine[live.request.request_id] = found
        self._free_blocks -= self.cache.acquire(found)
        live.blocks, live.computed = len(found), len(found) * self.shape.block_size
        if new:
            live.cached = live.computed
            self.counters.prefix_cache_hits += live.cached
            self.started += 1
            self.hit_tokens += live.cached
            self.asked_tokens += live.request.prompt_tokens

    def _compute(self, live: Live, tokens: int, new_blocks: int) -> None:
        super()._compute(live, tokens, new_blocks)
        self.cache.trim(self._free_blocks)

    def _book_decodes(self, preempted: list[str]) -> None:
        super()._book_decodes(preempted)
        self.cache.trim(self._free_blocks)

    def _end_prefill(self, live: Live, end_s: float, events: list[TokenEvent]) -> None:
        name = live.request.request_id
        hashes, mine = self._hashes[name], self._mine[name]
        for place in range(len(mine), live.computed // self.shape.block_size):
            # The first that is there twice ends what is shared: sharing is of prefixes.
            if not self.cache.register(hashes(place)):
                break
            mine.append(hashes(place))
        super()._end_prefill(live, end_s, events)

    def _take_out(self, live: Live) -> None:
        super()._take_out(live)
        name = live.request.request_id
        mine, hashes = self._mine[name], self._hashes[name]
        rest = [hashes(place) for place in range(len(mine), live.computed // self.shape.block_size)]
        self.cache.keep(rest)
        self._free_blocks -= self.cache.release(mine)
        self._mine[name] = []
        self.cache.trim(self._free_blocks)
