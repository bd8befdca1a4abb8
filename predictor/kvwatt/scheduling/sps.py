"""SPS, the staggered pipeline schedule: jobs of the same slice start at regular intervals.

Started together, D jobs of slice t would need D (s + t) tokens at the end; staggered over t, they need
D s + (t (D + 1) + D - gcd(t, D)) / 2 (idea of arXiv 2601.22996; the formula is derived).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd, isqrt

from kvwatt.scheduling.rounds import Board


def need_tokens(degree: int, prompt_tokens: int, slice_rounds: int) -> int:
    """Peak memory of a full pipeline; always a whole number."""
    d, t = degree, slice_rounds
    return d * prompt_tokens + (t * (d + 1) + d - gcd(t, d)) // 2


def largest_degree(memory_tokens: int, prompt_tokens: int, slice_rounds: int) -> int:
    """Most jobs that may overlap. Raises ValueError when not even one fits."""
    t, s = slice_rounds, prompt_tokens
    if s + t > memory_tokens:
        raise ValueError(f"one slice needs {s + t} tokens, the memory has {memory_tokens}")
    # gcd <= d, so d s + t (d + 1) / 2 <= need; from this upper end the true degree is few steps away.
    degree = max((2 * memory_tokens - t) // max(2 * s + t, 1), 1)
    while need_tokens(degree, s, t) > memory_tokens:
        degree -= 1
    return degree


def slice_of_area(prompt_tokens: int, budget: int) -> int:
    """Largest t with s t + t (t + 1) / 2 <= budget; 0 if not even one round."""
    b = 2 * prompt_tokens + 1
    t = (isqrt(b * b + 8 * budget) - b) // 2
    return max(t, 0)


class Pipeline:
    """One batch of jobs through SPS: job j starts `floor(j t / D)` rounds in, and stops after t."""

    def __init__(self, jobs: Sequence[int], slice_rounds: int, degree: int, start_round: int) -> None:
        self.slice_rounds = slice_rounds
        self.starts = {job: start_round + place * slice_rounds // degree for place, job in enumerate(jobs)}
        self._to_start = sorted(self.starts, key=self.starts.__getitem__, reverse=True)

    def stop_due(self, board: Board, stop: Callable[[int], None]) -> None:
        """Stop whoever has had its slice."""
        for job in [j for j in board.running if j in self.starts]:
            if board.round - self.starts[job] >= self.slice_rounds:
                stop(job)

    def due(self, board: Board) -> Iterator[int]:
        """Whose turn has come, each told once; who is not told yet is still `upcoming`."""
        while self._to_start and self.starts[self._to_start[-1]] <= board.round:
            yield self._to_start.pop()

    @property
    def upcoming(self) -> list[int]:
        """Who has not had its turn."""
        return self._to_start

    def over(self, board: Board) -> bool:
        """All have had their turn and none of them runs."""
        return not self._to_start and not any(job in self.starts for job in board.running)
