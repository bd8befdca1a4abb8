"""How many waiting requests may start now: the cap ladder over what vLLM's scheduler holds.

Pure: it reads requests by the attributes that vLLM's have (num_tokens, num_output_tokens, max_tokens) and
returns a number. `kvwattd.vllm_plugin.scheduler` puts it into a running engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from kvwatt.scheduling.cap_ladder import Admission, Ladder

LOOK = 64  # waiting requests looked at in one step; more cannot start in one anyway


class Sequenced(Protocol):
    """What is read of a request."""

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far."""

    @property
    def num_output_tokens(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...


def admissible(
    ladder: Ladder,
    running: Sequence[Sequenced],
    waiting: Iterable[Sequenced],
    capacity_tokens: int,
    block_size: int,
) -> int:
    """Length of the longest prefix of `waiting` that fits beside `running`, all up to their caps.

    Blocks are counted half full on average at their end. An empty engine admits at least one.
    """
    half = block_size // 2
    admission = Admission(
        ladder,
        capacity_tokens,
        [r.num_tokens + half for r in running],
        [r.num_output_tokens for r in running],
        [r.max_tokens for r in running],
    )
    count = 0
    for r in islice(waiting, LOOK):
        prompt = r.num_tokens - r.num_output_tokens
        if not admission.admits(prompt + half, r.num_output_tokens, r.max_tokens):
            return count
        count += 1
    return count


class LearnedCap:
    """The first rung from the lengths of requests that finished here: a quantile of the newest.

    Reserving near the middle of the distribution keeps the memory in use; those longer climb.
    """

    def __init__(self, default_tokens: int = 256, quantile: float = 0.75, memory: int = 256) -> None:
        if not 0.0 < quantile < 1.0 or memory < 1 or default_tokens < 1:
            raise ValueError(
                "default_tokens and memory must be >= 1 and quantile inside 0..1, "
                f"got {default_tokens}, {memory} and {quantile}"
            )
        self._quantile, self._memory = quantile, memory
        self._lengths: list[int] = []
        self._next = 0
        self.ladder = Ladder(default_tokens)

    def finished(self, output_tokens: int) -> None:
        """One more request is over. Learnt anew every sixteenth time."""
        if output_tokens < 1:
            return
        if len(self._lengths) < self._memory:
            self._lengths.append(output_tokens)
        else:
            self._lengths[self._next % self._memory] = output_tokens
        self._next += 1
        if self._next % 16 == 0:
            ordered = sorted(self._lengths)
            self.ladder = Ladder(ordered[int(self._quantile * len(ordered))] + 1)
