"""The exact projection where lengths are known: the scheduler played forward, and whether it fits.

throttLL'eM (HPCA 2025): with s the step of a request's first token, q its prompt and r its output,

    B_j = |{i: s_i <= j < s_i + r_i}|,    KV_j = sum over those i of ceil((q_i + j - s_i) / block size)

The paper takes s_i as given. `play` finds it: decodes first, then prefills in order within the token
budget, then waiting requests first come first served while seats and blocks last (vLLM V1's rules).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.scheduling.proj import peak_blocks
from kvwatt.state import EngineShape, RequestState

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def fits(
    first_step: Ints, prompt_tokens: Ints, output_tokens: Ints, shape: EngineShape, horizon_steps: int
) -> bool:
    """PROJ with seats: neither they nor KV blocks run out within the horizon, lengths being known."""
    rows = (first_step.tolist(), prompt_tokens.tolist(), output_tokens.tolist())
    peak = peak_blocks(*rows, shape.block_size, horizon_steps)
    if peak.blocks > max(shape.num_blocks - 1, 1):
        return False
    inside = first_step[(first_step >= 0) & (first_step < horizon_steps)]
    at = np.unique(np.append(inside, 0))
    age = at[:, None] - first_step[None, :]
    batch = ((age >= 0) & (age < output_tokens[None, :])).sum(axis=1)
    return int(batch.max(initial=0)) <= shape.max_num_seqs


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """What each coming step does; index 0 is the next step. All arrays have the length of the horizon.

    `batch`: requests in the batch, those being prefilled included. `kv_blocks`: blocks held during the
    step. `kv_tokens`: read by the decodes. `prefill_context_tokens`: of the step's prefills as one chunk
    with as many query-key pairs. `overflow_step`: first step that does not fit the KV cache, None if all do.
    """

    batch: Ints
    decode_batch: Ints
    kv_blocks: Ints
    kv_tokens: Ints
    prefill_tokens: Ints
    prefill_context_tokens: Floats
    overflow_step: int | None


@dataclass(slots=True)
class _Prompt:
    """A request with prompt left to compute; `admitted` False: it still waits."""

    target: int
    computed: int
    output_left: int
    admitted: bool


class _Player:
    def __init__(self, shape: EngineShape, horizon_steps: int) -> None:
        self._shape, self._horizon = shape, horizon_steps
        self._budget_blocks = max(shape.num_blocks - 1, 1)
        self.batch = np.zeros(horizon_steps, dtype=np.int64)
        self.decode = np.zeros(horizon_steps, dtype=np.int64)
        self.blocks = np.zeros(horizon_steps, dtype=np.int64)
        self.kv = np.zeros(horizon_steps, dtype=np.int64)
        self.prefill = np.zeros(horizon_steps, dtype=np.int64)
        self.pairs = np.zeros(horizon_steps)

    def add_decode(self, first: int, cached_tokens: int, steps: int) -> None:
        """It decodes from step `first` on, for `steps` steps, with so many tokens cached before."""
        last = min(first + steps, self._horizon)
        if last <= first:
            return
        held = cached_tokens + 1 + np.arange(last - first)
        self.batch[first:last] += 1
        self.decode[first:last] += 1
        self.kv[first:last] += held
        self.blocks[first:last] += -(-held // self._shape.block_size)

    def play(self, prompts: deque[_Prompt]) -> None:
        """Compute prompts step by step until all are decoding or the horizon ends."""
        step = 0
        while prompts and step < self._horizon:
            self._step(step, prompts)
            step += 1

    def _step(self, step: int, prompts: deque[_Prompt]) -> None:
        shape = self._shape
        budget = shape.max_num_batched_tokens - int(self.decode[step])
        held = int(self.blocks[step]) + sum(self._blocks(p.computed) for p in prompts if p.admitted)
        seats = shape.max_num_seqs - int(self.decode[step]) - sum(p.admitted for p in prompts)
        done: list[_Prompt] = []
        for prompt in prompts:
            if not prompt.admitted:
                no_room = held + self._blocks(prompt.target) > self._budget_blocks
                if budget <= 0 or seats <= 0 or no_room:
                    break
                prompt.admitted = True
                seats -= 1
            tokens = min(prompt.target - prompt.computed, max(budget, 0))
            held += self._blocks(prompt.computed + tokens) - self._blocks(prompt.computed)
            prompt.computed += tokens
            budget -= tokens
            self.prefill[step] += tokens
            self.pairs[step] += tokens * (prompt.computed - tokens / 2)
            if prompt.computed == prompt.target:
                done.append(prompt)
        self.batch[step] += sum(p.admitted for p in prompts)
        self.blocks[step] += sum(self._blocks(p.computed) for p in prompts if p.admitted)
        for prompt in done:
            prompts.remove(prompt)
            self.add_decode(step + 1, prompt.target, prompt.output_left - 1)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._shape.block_size)

    def schedule(self) -> Schedule:
        over = np.flatnonzero(self.blocks > self._budget_blocks)
        prefill = np.maximum(self.prefill, 1)
        context = np.where(self.prefill > 0, self.pairs / prefill - self.prefill / 2, 0.0)
        overflow = int(over[0]) if over.size else None
        return Schedule(self.batch, self.decode, self.blocks, self.kv, self.prefill, context, overflow)


def play(
    requests: Sequence[RequestState], total_tokens: Sequence[int], shape: EngineShape, horizon_steps: int
) -> Schedule:
    """Play the scheduler forward over requests in its order (running, then waiting) of known total
    output; whoever has computed nothing yet waits. No arrivals; an overflow is told, nothing is preempted.
    """
    if len(requests) != len(total_tokens):
        raise ValueError(f"{len(requests)} requests but {len(total_tokens)} lengths")
    player = _Player(shape, horizon_steps)
    prompts: deque[_Prompt] = deque()
    for request, total in zip(requests, total_tokens, strict=True):
        # Whoever was preempted recomputes what it had produced, too; the last token is never cached. Just at
        # the end of its prompt it cannot be told from one that decodes, and is taken for that.
        again = request.output_tokens > 0 and request.computed_prompt_tokens != request.prompt_tokens
        target = request.prompt_tokens + (request.output_tokens if again else 0)
        limit = math.inf if request.max_tokens is None else request.max_tokens
        left = max(int(min(total, limit)) - request.output_tokens, 0)
        if request.computed_prompt_tokens >= target:
            player.add_decode(0, target + request.output_tokens - 1, left)
        else:
            admitted = request.computed_prompt_tokens > 0
            prompts.append(_Prompt(target, request.computed_prompt_tokens, left, admitted))
    player.play(prompts)
    return player.schedule()
