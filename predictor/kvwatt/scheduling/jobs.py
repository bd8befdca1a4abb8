"""Jobs of the KV-cache scheduling problem, their areas and lower bounds on the total completion time.

Model (Feng, Yang, Zhang, arXiv 2601.22996): rounds are discrete; a running job holds its prompt and what
it has produced, s + p tokens, and produces one token a round; the memory holds M tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Job:
    """One request: `prompt_tokens` s, `output_tokens` o, and the round from which it may start."""

    prompt_tokens: int
    output_tokens: int
    arrival_round: int = 0

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.output_tokens < 1 or self.arrival_round < 0:
            raise ValueError(
                f"a job needs prompt_tokens >= 0, output_tokens >= 1 and arrival_round >= 0, got {self}"
            )

    @property
    def area(self) -> int:
        """Memory times rounds of an uninterrupted run: sum of s + k over k = 1..o."""
        return area(self.prompt_tokens, self.output_tokens)


def area(prompt_tokens: int, output_tokens: int) -> int:
    """A = s o + o (o + 1) / 2."""
    return prompt_tokens * output_tokens + output_tokens * (output_tokens + 1) // 2


def check(jobs: Sequence[Job], memory_tokens: int) -> None:
    """ValueError unless every job fits the memory alone."""
    for i, job in enumerate(jobs):
        if job.prompt_tokens + job.output_tokens > memory_tokens:
            raise ValueError(f"job {i} needs more than the memory of {memory_tokens} tokens: {job}")


def total_lower_bound(jobs: Sequence[Job], memory_tokens: int) -> float:
    """No schedule has a smaller sum of completion rounds (all jobs wait from round 0, kills restart)."""
    if any(job.arrival_round for job in jobs):
        raise ValueError("the bound is for jobs that all wait from round 0")
    return max(_prefix_bound(jobs, memory_tokens), _mean_busy_bound(jobs, memory_tokens))


def _prefix_bound(jobs: Sequence[Job], memory_tokens: int) -> float:
    """Sum over k of max(o_(k), ceil(sum of the k smallest areas / M)) (arXiv 2601.22996).

    The k-th job to complete cannot do so before the k-th smallest output, nor before the k smallest
    areas have passed through the memory.
    """
    outputs = sorted(job.output_tokens for job in jobs)
    areas = accumulate(sorted(job.area for job in jobs))
    return float(sum(max(o, -(-a // memory_tokens)) for o, a in zip(outputs, areas, strict=True)))


def _mean_busy_bound(jobs: Sequence[Job], memory_tokens: int) -> float:
    """Mean busy times (derived; after Eastman, Even and Isaacs 1964 for parallel machines).

    Let M_j be the memory-weighted mean time of job j's last, uninterrupted run. It completes d_j after
    M_j, d_j = sum over k of (s + k)(o - k + 1/2) / A. Whatever the schedule, memory passes at most M per
    round, so sum over S of A_j M_j >= (sum over S of A_j)^2 / 2M for every set S; the least sum of M_j
    under these constraints is that of smallest area first (Queyranne 1993).
    """
    areas = sorted(job.area for job in jobs)
    middles = sum(2 * total - a for a, total in zip(areas, accumulate(areas), strict=True))
    return middles / (2.0 * memory_tokens) + sum(_after_middle(job) for job in jobs)


def _after_middle(job: Job) -> float:
    """d of one job: sum of (s + k)(o - k + 1/2), k = 1..o, in closed form, over its area."""
    s, o = job.prompt_tokens, job.output_tokens
    first, second = o * (o + 1) / 2, o * (o + 1) * (2 * o + 1) / 6
    return (s * o * (o + 0.5) + (o + 0.5 - s) * first - second) / job.area
