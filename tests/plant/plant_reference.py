"""vLLM's scheduling loop written the slow, obvious way: the engine must agree with it step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvwatt.state import EngineShape
from kvwatt_sim.engine import Request


@dataclass(eq=False)
class Seq:
    request: Request
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    seen: bool = False
    decoding: bool = False

    @property
    def tokens(self) -> int:
        return self.request.prompt_tokens + self.generated


@dataclass
class ReferenceStep:
    decode_batch: int = 0
    kv_tokens: int = 0
    prefill: list[tuple[str, int, int]] = field(default_factory=list)  # id, tokens, context
    preempted: list[str] = field(default_factory=list)


class ReferenceEngine:
    """One pass over the running list in its order, then admissions; everything looked at every time."""

    def __init__(self, shape: EngineShape, prefix_hit_ratio: float) -> None:
        self.shape = shape
        self.ratio = prefix_hit_ratio
        self.free = shape.num_blocks - 1
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []
        self.scheduled: list[Seq] = []

    def add(self, request: Request) -> None:
        self.waiting.append(Seq(request))

    def abort(self, request_id: str) -> None:
        for queue in (self.waiting, self.running, self.scheduled):
            for seq in [seq for seq in queue if seq.request.request_id == request_id]:
                queue.remove(seq)
                self.free += seq.blocks
                seq.blocks = 0

    def schedule(self) -> ReferenceStep:
        step = ReferenceStep()
        self.scheduled = []
        budget = self.shape.max_num_batched_tokens
        index = 0
        while index < len(self.running) and budget > 0:
            seq = self.running[index]
            new = min(seq.tokens - seq.computed, budget)
            if not self._allocate(seq, new, step):
                break
            self._take(seq, new, step)
            budget -= new
            index += 1
        while not step.preempted and self.waiting and budget > 0:
            seq = self.waiting[0]
            if len(self.running) >= self.shape.max_num_seqs or self._cover(seq.tokens) > self.free:
                break
            self.running.append(self.waiting.pop(0))
            if not seq.seen:
                full = (seq.request.prompt_tokens - 1) // self.shape.block_size
                seq.computed = int(self.ratio * full) * self.shape.block_size
            seq.seen = True
            new = min(seq.tokens - seq.computed, budget)
            assert self._allocate(seq, new, step)
            self._take(seq, new, step)
            budget -= new
        return step

    def complete(self) -> tuple[list[str], list[str]]:
        """Identifiers that got a token, and those that finished."""
        tokens, finished = [], []
        for seq in self.scheduled:
            if seq.computed < seq.tokens:
                continue
            seq.generated += 1
            seq.decoding = True
            tokens.append(seq.request.request_id)
            if seq.generated == seq.request.total_output_tokens:
                finished.append(seq.request.request_id)
                self.running.remove(seq)
                self.free += seq.blocks
        return tokens, finished

    def _take(self, seq: Seq, new: int, step: ReferenceStep) -> None:
        if seq.decoding:
            assert new == 1
            step.decode_batch += 1
            step.kv_tokens += seq.computed + 1
        else:
            step.prefill.append((seq.request.request_id, new, seq.computed))
        seq.computed += new
        self.scheduled.append(seq)

    def _allocate(self, seq: Seq, new: int, step: ReferenceStep) -> bool:
        needed = self._cover(seq.computed + new) - seq.blocks
        while needed > self.free:
            victim = self.running.pop()
            self.free += victim.blocks
            victim.blocks = victim.computed = 0
            victim.decoding = False
            self.waiting.insert(0, victim)
            step.preempted.append(victim.request.request_id)
            if victim is seq:
                return False
        seq.blocks += needed
        self.free -= needed
        return True

    def _cover(self, tokens: int) -> int:
        return -(-tokens // self.shape.block_size)
