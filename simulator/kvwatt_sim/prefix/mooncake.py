"""Mooncake's traces with their block hashes (kvcache-ai/Mooncake, FAST 2025): `hash_ids`, 512 tokens each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvwatt_sim.traces import TraceError, TraceRequest, load_mooncake, read_lines

BLOCK_TOKENS = 512
_MOST_PARTS = 1 << 12


class _Row(msgspec.Struct):
    hash_ids: list[int]


@dataclass(frozen=True, slots=True)
class MooncakeRequest:
    """A request and the hashes of its prompt's blocks; its answer's are its own."""

    request: TraceRequest
    hash_ids: tuple[int, ...]
    number: int

    def hashes(self, block_size: int) -> Callable[[int], int]:
        """The hash of the n-th block of `block_size` tokens; one that ends within block k of the trace is
        known by k. Raises ValueError where the trace's blocks are no multiple."""
        if BLOCK_TOKENS % block_size:
            raise ValueError(f"block_size = {block_size}: a divisor of {BLOCK_TOKENS} is needed")
        parts = BLOCK_TOKENS // block_size
        known = self.request.prompt_tokens // BLOCK_TOKENS * parts  # the last one may be in part the answer's

        def at(place: int) -> int:
            if place < known and place // parts < len(self.hash_ids):
                return 2 * (self.hash_ids[place // parts] * _MOST_PARTS + place % parts)
            return 2 * (self.number * (_MOST_PARTS << 12) + place) + 1

        return at


def load_hashed(path: Path) -> tuple[MooncakeRequest, ...]:
    """Requests with their hashes. Raises TraceError as `load_mooncake`, and for hashes that are none."""
    requests = load_mooncake(path)
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    found = []
    for place, ((number, line), request) in enumerate(zip(lines, requests, strict=True)):
        try:
            ids = msgspec.json.decode(line, type=_Row).hash_ids
        except msgspec.DecodeError as error:
            raise TraceError(
                f"{path}: line {number}: {error}; expected hash_ids, a list of numbers"
            ) from error
        if any(item < 0 for item in ids):
            raise TraceError(f"{path}: line {number}: hash_ids must be >= 0, got {min(ids)}")
        found.append(MooncakeRequest(request, tuple(ids), place))
    return tuple(found)
