"""The scheduler: first come first served, chunked prefill, hard KV budget, recompute preemption.

The laws (each a test):
1. A step computes at most `max_num_batched_tokens`; at most `max_num_seqs` requests run.
2. Blocks in use never exceed `num_blocks - 1` (vLLM keeps one back) and are all free in the end.
3. Requests are first scheduled in the order in which they were added.
4. A step in which something was preempted admits nothing; who is preempted comes back first.
5. A request's first token comes at the end of the step that finishes its prefill; each decode step
   gives one token to every decoding request.

Read from vLLM 0.3x `v1/core/sched/scheduler.py`: running requests first, the last of them is preempted
when blocks are short; a waiting request is admitted when its whole sequence fits the free blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvwatt.state import EngineShape, RequestState
from kvwatt_sim.engine.live import DecodeGroup, Live, Phase
from kvwatt_sim.engine.types import (
    Counters,
    EventKind,
    FinishReason,
    Request,
    RequestRecord,
    StepPlan,
    TokenEvent,
)


class Engine:
    """Virtual-time engine: `add`, then `schedule` and `complete` in turn.

    `prefix_hit_ratio`: share of a new prompt's full blocks found in the prefix cache. Such blocks are
    not computed but still held by each request, so sharing saves time and no memory.
    `token_events`: False leaves out the TOKEN events of decodes, for long replays.
    """

    def __init__(
        self, shape: EngineShape, prefix_hit_ratio: float = 0.0, *, token_events: bool = True
    ) -> None:
        _check(shape, prefix_hit_ratio)
        self.shape = shape
        self.counters = Counters()
        self.hold_arrivals = False  # who is added waits until `release`; those behind it wait, too
        self.admit_blocks: int | None = None  # see `_may_join`
        # How many may run in the coming step; asked before each while somebody waits.
        self.seats: Callable[[], int] | None = None
        self._hit_ratio = prefix_hit_ratio
        self._token_events = token_events
        self._budget_blocks = shape.num_blocks - 1
        self._free_blocks = self._budget_blocks
        self._requests: dict[str, Live] = {}
        self._waiting: deque[Live] = deque()
        self._running: dict[str, Live] = {}  # in scheduling order
        self._prefilling: dict[str, Live] = {}  # the part of _running with prompt left, same order
        self._decodes = DecodeGroup(shape.block_size)
        self._chunks: list[Live] = []  # the current step's prefills
        self._plan: StepPlan | None = None
        self._decodes_in_flight = False

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests queued, preempted ones included."""
        return len(self._waiting)

    @property
    def kv_used_blocks(self) -> int:
        return self._budget_blocks - self._free_blocks

    @property
    def kv_usage(self) -> float:
        """vLLM's `kv_cache_usage_perc`: 0..1."""
        return self.kv_used_blocks / self._budget_blocks

    def requests(self) -> tuple[tuple[Request, RequestState], ...]:
        """Everyone inside as the scheduler sees them between two steps: the batch in its order, the queue."""
        everyone = (*self._running.values(), *self._waiting)
        return tuple((live.request, self._decodes.state_of(live)) for live in everyone)

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError for a known id or one that can never fit the KV cache."""
        if request.request_id in self._requests:
            raise ValueError(f"request_id = {request.request_id!r}: already in the engine")
        # The last token is generated but never cached.
        longest = request.prompt_tokens + request.total_output_tokens - 1
        if self._blocks(longest) > self._budget_blocks:
            raise ValueError(
                f"request {request.request_id!r} needs {longest} tokens of KV cache; "
                f"the engine has {self._budget_blocks * self.shape.block_size}"
            )
        live = Live(request)
        live.held = self.hold_arrivals
        self._requests[request.request_id] = live
        self._waiting.append(live)

    def abort(self, request_id: str, now_s: float) -> RequestRecord | None:
        """Drop a request and free its blocks, also in the middle of a step. None: not in the engine."""
        live = self._requests.get(request_id)
        if live is None:
            return None
        if live.phase is Phase.WAITING:
            self._waiting.remove(live)
        else:
            self._take_out(live)
        return self._close(live, FinishReason.ABORT, now_s, None)

    def release(self, request_id: str) -> None:
        """Admit a held request in its turn; one that is gone is left alone."""
        if request_id in self._requests:
            self._requests[request_id].held = False

    def schedule(self, now_s: float) -> StepPlan | None:
        """Plan the step that starts at `now_s`; None when there is nothing to run, or all of it is held.

        Raises RuntimeError when the previous plan was not completed."""
        if self._plan is not None:
            raise RuntimeError(f"step {self._plan.step_index} is not completed")
        if not self._requests:
            return None
        seats = self._seats()
        preempted: list[str] = []
        self._chunks = []
        self._book_decodes(preempted)
        decode_batch = len(self._decodes)
        budget = self.shape.max_num_batched_tokens - decode_batch
        chunks = self._continue_prefills(budget, preempted)
        decode_batch = len(self._decodes)
        if not preempted:
            budget -= sum(tokens for _, tokens in chunks)
            chunks += self._admit(seats, budget, now_s)
        if not (decode_batch or chunks or preempted):
            return None
        self._plan = self._make_plan(now_s, decode_batch, chunks, preempted)
        return self._plan

    def complete(self, plan: StepPlan, end_s: float) -> tuple[TokenEvent, ...]:
        """End the step at `end_s`: tokens, and what finished with them."""
        if plan is not self._plan:
            raise RuntimeError(f"step {plan.step_index} is not the one that runs")
        self._plan = None
        events: list[TokenEvent] = []
        if self._decodes_in_flight:
            self._decodes_in_flight = False
            self._end_decodes(end_s, events)
        for live in self._chunks:
            if live.phase is Phase.PREFILL and live.computed == live.target:
                self._end_prefill(live, end_s, events)
        self._chunks = []
        return tuple(events)

    def _book_decodes(self, preempted: list[str]) -> None:
        """Give every decode the block it may need, preempting from the end of the batch."""
        if self._decodes.blocks_needed <= self._free_blocks:
            self._free_blocks -= self._decodes.blocks_needed
        else:
            self._book_one_by_one(preempted)
        if len(self._decodes):
            self._decodes.advance()
            self._decodes_in_flight = True

    def _book_one_by_one(self, preempted: list[str]) -> None:
        for live in list(self._running.values()):
            if live.phase is not Phase.DECODE or not self._decodes.needs_block(live):
                continue
            if self._make_room(live, 1, preempted):
                self._free_blocks -= 1

    def _continue_prefills(self, budget: int, preempted: list[str]) -> list[tuple[Live, int]]:
        chunks: list[tuple[Live, int]] = []
        for live in list(self._prefilling.values()):
            tokens = min(live.target - live.computed, budget)
            if tokens <= 0:
                break
            if live.phase is not Phase.PREFILL:  # preempted a moment ago
                continue
            needed = self._blocks(live.computed + tokens) - live.blocks
            if not self._make_room(live, needed, preempted):
                break
            self._compute(live, tokens, needed)
            chunks.append((live, tokens))
            budget -= tokens
        return chunks

    def _seats(self) -> int:
        most = self.shape.max_num_seqs
        return min(self.seats(), most) if self.seats is not None and self._waiting else most

    def _admit(self, seats: int, budget: int, now_s: float) -> list[tuple[Live, int]]:
        chunks: list[tuple[Live, int]] = []
        while self._waiting and budget > 0 and len(self._running) < seats:
            live = self._waiting[0]
            if live.held or not self._may_join(self._blocks(live.target)):
                break
            self._waiting.popleft()
            self._start(live, now_s)
            tokens = min(live.target - live.computed, budget)
            self._compute(live, tokens, self._blocks(live.computed + tokens) - live.blocks)
            chunks.append((live, tokens))
            budget -= tokens
        return chunks

    def _may_join(self, blocks: int) -> bool:
        """They are free, and within what a batch may hold once a request joins it. An empty batch takes
        whoever is first, whatever the cap: else it would never be served."""
        cap = self._budget_blocks if self.admit_blocks is None else self.admit_blocks
        within = not self._running or self.kv_used_blocks + blocks <= cap
        return within and blocks <= self._free_blocks

    def _start(self, live: Live, now_s: float) -> None:
        """Put a waiting request into the batch, with its prefix-cache hits when it is new."""
        live.phase = Phase.PREFILL
        self._running[live.request.request_id] = live
        self._prefilling[live.request.request_id] = live
        if live.first_scheduled_s is not None:
            return  # back after preemption: its own blocks are gone, everything is recomputed
        live.first_scheduled_s = now_s
        prompt = live.request.prompt_tokens
        # vLLM always computes at least the last prompt token.
        full_blocks = (prompt - 1) // self.shape.block_size
        live.cached = int(self._hit_ratio * full_blocks) * self.shape.block_size
        live.computed = live.cached
        self.counters.prefix_cache_queries += prompt
        self.counters.prefix_cache_hits += live.cached

    def _compute(self, live: Live, tokens: int, new_blocks: int) -> None:
        live.computed += tokens
        live.blocks += new_blocks
        self._free_blocks -= new_blocks
        self._chunks.append(live)

    def _make_room(self, live: Live, blocks: int, preempted: list[str]) -> bool:
        """Preempt the last of the batch until `blocks` are free; False when that was `live` itself."""
        while self._free_blocks < blocks:
            if live.phase is Phase.WAITING:
                return False
            victim = next(reversed(self._running.values()))
            self._take_out(victim)
            victim.phase = Phase.WAITING
            victim.computed = 0
            victim.preemptions += 1
            self._waiting.appendleft(victim)
            self.counters.preemptions += 1
            preempted.append(victim.request.request_id)
        return live.phase is not Phase.WAITING

    def _take_out(self, live: Live) -> None:
        """Remove from the batch and free the blocks."""
        request_id = live.request.request_id
        del self._running[request_id]
        self._prefilling.pop(request_id, None)
        if live.phase is Phase.DECODE:
            self._decodes.leave(live, self._decodes_in_flight)
        self._free_blocks += live.blocks
        live.blocks = 0

    def _make_plan(
        self, now_s: float, decode_batch: int, chunks: list[tuple[Live, int]], preempted: list[str]
    ) -> StepPlan:
        prefill = sum(tokens for _, tokens in chunks)
        # computed already includes the chunk, and a chunk of n tokens has n * (context + n / 2) pairs.
        pairs = sum(tokens * (live.computed - tokens / 2) for live, tokens in chunks)
        plan = StepPlan(
            step_index=self.counters.steps,
            start_s=now_s,
            decode_batch=decode_batch,
            kv_tokens=self._decodes.kv_tokens,
            prefill_tokens=prefill,
            prefill_context_tokens=pairs / prefill - prefill / 2 if prefill else 0.0,
            prefill_ids=tuple(live.request.request_id for live, _ in chunks),
            preempted=tuple(preempted),
        )
        self.counters.steps += 1
        self.counters.computed_tokens += plan.scheduled_tokens
        return plan

    def _end_decodes(self, end_s: float, events: list[TokenEvent]) -> None:
        self.counters.generation_tokens += len(self._decodes)
        if self._token_events:
            events.extend([TokenEvent(request_id, end_s, EventKind.TOKEN) for request_id in self._decodes])
        for live in self._decodes.finished():
            self._take_out(live)
            self._finish(live, end_s, events)

    def _end_prefill(self, live: Live, end_s: float, events: list[TokenEvent]) -> None:
        live.generated += 1
        self.counters.generation_tokens += 1
        del self._prefilling[live.request.request_id]
        if live.first_token_s is None:
            live.first_token_s = end_s
            self.counters.prompt_tokens += live.request.prompt_tokens
            self.counters.prompt_tokens_cached += live.cached
            events.append(TokenEvent(live.request.request_id, end_s, EventKind.FIRST))
        else:
            events.append(TokenEvent(live.request.request_id, end_s, EventKind.TOKEN))
        if live.generated < live.total:
            self._decodes.join(live)
        else:
            self._take_out(live)
            self._finish(live, end_s, events)

    def _finish(self, live: Live, end_s: float, events: list[TokenEvent]) -> None:
        record = self._close(live, live.request.finish_reason, end_s, end_s)
        events.append(TokenEvent(live.request.request_id, end_s, EventKind.FINISHED, record))

    def _close(
        self, live: Live, reason: FinishReason, end_s: float, last_token_s: float | None
    ) -> RequestRecord:
        live.phase = Phase.GONE
        del self._requests[live.request.request_id]
        self.counters.finished[reason] += 1
        return live.record(reason, end_s, last_token_s)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.shape.block_size)


def _check(shape: EngineShape, prefix_hit_ratio: float) -> None:
    if not 0.0 <= prefix_hit_ratio <= 1.0:
        raise ValueError(f"prefix_hit_ratio = {prefix_hit_ratio!r}: 0 to 1 is accepted")
    if shape.block_size < 1 or shape.num_blocks < 2 or shape.max_num_seqs < 1:
        raise ValueError(
            f"block_size = {shape.block_size}, num_blocks = {shape.num_blocks}, "
            f"max_num_seqs = {shape.max_num_seqs}: at least 1, 2 and 1 are needed"
        )
    if shape.max_num_batched_tokens < shape.max_num_seqs:  # vLLM refuses it too
        raise ValueError(
            f"max_num_batched_tokens = {shape.max_num_batched_tokens}: "
            f"at least max_num_seqs = {shape.max_num_seqs} is needed"
        )
