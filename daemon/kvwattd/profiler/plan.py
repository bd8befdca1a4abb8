"""Which operating points to measure, and in which order: the ones that teach most come first. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (128, 512, 2048, 8192)
PROMPTS = (64, 128, 256, 512, 1024, 2048, 4096)
MIXED_BATCHES = (8, 32, 128)
MIXED_CONTEXTS = (128, 1024)
MIXED_PROMPTS = (128, 512, 1024, 2048, 4096)
HEADROOM = 0.9  # of the KV cache: beyond it the scheduler preempts
GROWTH_TOKENS = 256  # room for what a sequence produces while it is measured


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine accepts."""

    kv_capacity_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """`batch` sequences that start at `context_tokens` each."""

    batch: int
    context_tokens: int

    def __str__(self) -> str:
        return f"batch {self.batch}, context {self.context_tokens}"


@dataclass(frozen=True, slots=True)
class PrefillLoad:
    """Single prompts of this length, one after the other."""

    prompt_tokens: int

    def __str__(self) -> str:
        return f"prompt of {self.prompt_tokens}"


@dataclass(frozen=True, slots=True)
class MixedLoad:
    """`batch` decoding sequences, and beside them one prompt at a time that one step takes whole."""

    batch: int
    context_tokens: int
    prompt_tokens: int

    def __str__(self) -> str:
        return f"batch {self.batch}, context {self.context_tokens}, prompts of {self.prompt_tokens}"


@dataclass(frozen=True, slots=True)
class IdleLoad:
    """Nothing runs."""

    def __str__(self) -> str:
        return "idle"


Load = DecodeLoad | PrefillLoad | MixedLoad | IdleLoad


def clock_ladder(
    supported_mhz: Sequence[int], low_mhz: float, high_mhz: float, count: int
) -> tuple[int, ...]:
    """`count` supported clocks from high to low, about evenly spaced in ratio, both ends among them."""
    allowed = sorted(clock for clock in supported_mhz if low_mhz <= clock <= high_mhz)
    if not allowed:
        raise ValueError(f"no supported clock between {low_mhz:g} and {high_mhz:g} MHz")
    if len(allowed) <= count:
        return tuple(reversed(allowed))
    ratio = allowed[0] / allowed[-1]
    wanted = [allowed[-1] * ratio ** (step / (count - 1)) for step in range(count)]
    chosen = {min(allowed, key=lambda clock: abs(clock - target)) for target in wanted}
    return tuple(sorted(chosen, reverse=True))


def decode_loads(limits: Limits) -> list[DecodeLoad]:
    """All batch x context combinations that fit the engine."""
    top = limits.max_num_seqs
    batches = sorted({batch for batch in BATCHES if batch < top} | {top})
    room = HEADROOM * limits.kv_capacity_tokens
    return [
        DecodeLoad(batch, context)
        for batch in batches
        for context in CONTEXTS
        if context + GROWTH_TOKENS <= limits.max_model_len and batch * (context + GROWTH_TOKENS) <= room
    ]


def prefill_loads(limits: Limits) -> list[PrefillLoad]:
    """Prompts that one step can take whole."""
    longest = min(limits.max_num_batched_tokens, limits.max_model_len - 1, limits.kv_capacity_tokens - 1)
    lengths = sorted({length for length in PROMPTS if length < longest} | {longest})
    return [PrefillLoad(length) for length in lengths]


def mixed_loads(limits: Limits) -> list[MixedLoad]:
    """Decoding batches beside prompts that fit the same step, with a sequence and cache to spare for them.

    Ordered so that the last lies in the middle of what an engine commonly does.
    """
    batches = sorted({min(batch, limits.max_num_seqs - 1) for batch in MIXED_BATCHES} - {0})
    room = HEADROOM * limits.kv_capacity_tokens
    loads = []
    for batch in batches:
        longest = min(limits.max_num_batched_tokens - batch, limits.max_model_len - 1)
        prompts = sorted({prompt for prompt in MIXED_PROMPTS if prompt < longest} | {longest})
        loads += [
            MixedLoad(batch, context, prompt)
            for context in MIXED_CONTEXTS
            for prompt in prompts
            if prompt > 0
            and context + GROWTH_TOKENS <= limits.max_model_len
            and batch * (context + GROWTH_TOKENS) + prompt <= room
        ]
    middle = sorted(load.prompt_tokens for load in loads)[len(loads) // 2] if loads else 0
    return sorted(loads, key=lambda load: -abs(math.log2(load.prompt_tokens / middle)))


def farthest_first(loads: Sequence[DecodeLoad]) -> list[DecodeLoad]:
    """Corners before the inside: each next load is the one farthest, in ratio, from those before it."""
    left = list(loads)
    order: list[DecodeLoad] = []
    if left:
        order.append(max(left, key=lambda load: (load.batch, -load.context_tokens)))
        left.remove(order[0])
    while left:
        following = max(left, key=lambda load: min(_distance(load, other) for other in order))
        order.append(following)
        left.remove(following)
    return order


def _distance(a: DecodeLoad, b: DecodeLoad) -> float:
    # The context matters less than the batch: its term is linear in batch x context.
    batch = math.log2(a.batch / b.batch)
    return math.hypot(batch, 0.7 * math.log2(a.context_tokens / b.context_tokens))


def plan(limits: Limits) -> list[Load]:
    """Every load, ordered so that stopping anywhere leaves a table that can be trained on."""
    decode: list[Load] = list(farthest_first(decode_loads(limits)))
    prefill: list[Load] = list(_ends_first(prefill_loads(limits)))
    return [*decode[:2], *prefill[:2], IdleLoad(), *_alternate(decode[2:], prefill[2:])]


def _ends_first(loads: list[PrefillLoad]) -> list[PrefillLoad]:
    """Longest, shortest, then the middle of what is left, inwards."""
    order = [loads.pop()] if loads else []
    while loads:
        order.append(loads.pop(0 if len(order) == 1 else len(loads) // 2))
    return order


def _alternate(decode: list[Load], prefill: list[Load]) -> list[Load]:
    """Two decode loads for each prefill load, while both last."""
    merged: list[Load] = []
    while decode or prefill:
        merged += decode[:2] + prefill[:1]
        del decode[:2], prefill[:1]
    return merged


def worst_next_s(measured_s: float, clock_mhz: float, next_mhz: float) -> float:
    """Upper bound of a latency at a lower clock: nothing slows down more than in inverse proportion."""
    return measured_s * clock_mhz / next_mhz
