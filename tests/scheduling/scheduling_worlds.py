"""Strategies and a brute-force optimum for small instances."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from hypothesis import strategies as st

from kvwatt.scheduling.jobs import Job
from kvwatt.scheduling.proj import peak_tokens


@st.composite
def instances(draw: st.DrawFn, common: bool = True, most: int = 25) -> tuple[list[Job], int]:
    """Jobs that all fit alone, and the memory."""
    memory = draw(st.integers(8, 400))
    largest = draw(st.integers(0, memory // 2))
    n = draw(st.integers(1, most))
    outputs = draw(st.lists(st.integers(1, memory - largest), min_size=n, max_size=n))
    prompts = [largest] * n if common else draw(st.lists(st.integers(0, largest), min_size=n, max_size=n))
    return [Job(s, o) for s, o in zip(prompts, outputs, strict=True)], memory


def optimum(jobs: Sequence[Job], memory_tokens: int) -> int:
    """Least total completion without kills: every order, each job as early as its predecessors permit.

    In an optimal schedule ordered by start, each starts at the first round not before its predecessor's
    at which it fits beside them for good, so all orders with that rule contain an optimum.
    """
    return min(_in_order([jobs[i] for i in order], memory_tokens) for order in permutations(range(len(jobs))))


def _in_order(jobs: Sequence[Job], memory_tokens: int) -> int:
    placed: list[tuple[int, Job]] = []
    start = 0
    for job in jobs:
        while not _fits([*placed, (start, job)], start, memory_tokens):
            start += 1
        placed.append((start, job))
    return sum(s + job.output_tokens for s, job in placed)


def _fits(placed: Sequence[tuple[int, Job]], now: int, memory_tokens: int) -> bool:
    alive = [(s, job) for s, job in placed if s + job.output_tokens > now]
    held = [job.prompt_tokens + now - s for s, job in alive]
    left = [s + job.output_tokens - now for s, job in alive]
    return peak_tokens(held, left) <= memory_tokens
