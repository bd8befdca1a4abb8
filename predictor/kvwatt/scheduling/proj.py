"""PROJ: does what runs, and whoever is to start, fit the KV cache until it leaves?

    KV_j = sum over requests inside at step j of ceil((tokens + j - first step) / block size)

(throttLL'eM, HPCA 2025; with blocks of one token and everybody inside, the test of arXiv 2601.22996.) KV_j
falls only when somebody leaves, so its peak is at the last step of somebody or of the horizon. The one home
of PROJ: admission, the clock control's exact projection, GSA-Spec and the simulated rivals ask here. Pure
Python, as the scheduler inside vLLM brings no numpy of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Peak(NamedTuple):
    """Largest number of KV blocks held over the horizon, and the first step that holds it."""

    blocks: int
    step: int


def peak_tokens(held: Iterable[int], left: Iterable[int]) -> int:
    """Largest memory over the coming rounds, in tokens, nobody else starting; both of one length.

    Who holds `held` tokens now holds one more in every coming round and leaves after `left` >= 1 rounds.
    """
    return peak_of(sorted(zip(left, held, strict=True), reverse=True))


def peak_of(left_held: Iterable[tuple[int, int]]) -> int:
    """The same of pairs (left, held) in falling order of left.

    With everybody who stays at least r rounds counted at round r, the peak is the largest of these sums;
    within one r only the last pair has all of them before it, and the others' sums are smaller.
    """
    most = total = 0
    for count, (left, held) in enumerate(left_held, 1):
        total += held
        if (now := total + count * left) > most:
            most = now
    return most


def first_full(tokens: Sequence[int], block_size: int, room_blocks: int) -> int:
    """The first step, 0 for the next one, in which these need more blocks than the room if nobody leaves.

    Who has n tokens has n + j in its blocks in step j.
    """
    whole, rests = 0, []
    for n in tokens:
        blocks, rest = divmod(n + block_size - 1, block_size)
        whole += blocks
        rests.append(rest)
    if whole > room_blocks:
        return 0
    rounds, spare = divmod(room_blocks - whole, len(rests))
    rests.sort(reverse=True)
    return block_size * (rounds + 1) - rests[spare]


def first_over(leaving: Iterable[tuple[int, int]], total: int, count: int, room: int, full: int) -> int:
    """The same where some leave: pairs (after how many steps, tokens) in their order.

    `total` tokens of `count` requests now; `full`: the step if nobody leaves. In tokens, but for `full`.
    """
    for left, tokens in leaving:
        if full < left:
            return full
        total, count = total - tokens, count - 1
        full = max((room - total) // count + 1, left)
    return full


def fits(held: Iterable[int], left: Iterable[int], memory_tokens: int) -> bool:
    """PROJ in tokens for known (or capped) remaining rounds."""
    return peak_tokens(held, left) <= memory_tokens


def peak_blocks(
    first_step: Sequence[int],
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    block_size: int,
    horizon_steps: int,
) -> Peak:
    """Exact peak of KV_j over 0 <= j < horizon_steps; three sequences of one length.

    Request i is inside from step `first_step` (negative: since before now) for `output_tokens` steps, and
    holds `prompt_tokens` in the first of them.
    """
    rows = [
        (first, prompt, first + output - 1)
        for first, prompt, output in zip(first_step, prompt_tokens, output_tokens, strict=True)
        if first + output > 0 and first < horizon_steps
    ]
    last_step = max(horizon_steps - 1, 0)
    best, since, top = 0, 0, last_step
    after = 0
    for step, blocks in _at_departures(rows, block_size, last_step):
        if blocks > best:
            best, since, top = blocks, after, step
        after = step + 1
    return Peak(best, _first_at_least(best, since, top, rows, block_size))


def _at_departures(rows: list[tuple[int, int, int]], size: int, last_step: int) -> Iterable[tuple[int, int]]:
    """(step, blocks) at the last step of everybody and of the horizon, ascending.

    With tokens - first + size - 1 = size * a + b and step = size * q + k, a request holds
    a + q + (b + k >= size) blocks: sums of a, a count, and counts by b are enough.
    """
    coming = sorted(rows, reverse=True)
    leaving = sorted((last, prompt - first) for first, prompt, last in rows)
    by_rest, whole, count, gone = [0] * size, 0, 0, 0
    for step in sorted({min(last, last_step) for _, _, last in rows} | {last_step}):
        while coming and coming[-1][0] <= step:
            first, prompt, _ = coming.pop()
            a, b = divmod(prompt - first + size - 1, size)
            whole, count = whole + a, count + 1
            by_rest[b] += 1
        q, k = divmod(step, size)
        yield step, whole + count * q + sum(by_rest[size - k :])
        while gone < len(leaving) and leaving[gone][0] <= step:
            a, b = divmod(leaving[gone][1] + size - 1, size)
            whole, count, gone = whole - a, count - 1, gone + 1
            by_rest[b] -= 1


def _first_at_least(wanted: int, low: int, high: int, rows: list[tuple[int, int, int]], size: int) -> int:
    """First step from `low` on with so many blocks; between two departures they never fall."""
    while low < high:
        middle = (low + high) // 2
        held = sum(
            -(-(prompt + middle - first) // size) for first, prompt, last in rows if first <= middle <= last
        )
        low, high = (low, middle) if held >= wanted else (middle + 1, high)
    return low
