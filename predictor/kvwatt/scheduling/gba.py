"""GBA: the clairvoyant counterpart of GSA (arXiv 2601.22996): length classes, shortest first, by SPS.

Total completion time is at most 10.67 times the best possible, 6.75 times with large memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, floor, log, log2

from kvwatt.scheduling.jobs import Job
from kvwatt.scheduling.proj import fits
from kvwatt.scheduling.rounds import Board
from kvwatt.scheduling.sps import Pipeline, largest_degree

BEST_ALPHA = 4.0 / 3.0  # of the general bound, 10.67; the large-memory bound, 6.75, is at 3/2


def length_class(output_tokens: int, alpha: float) -> int:
    """k with alpha^(k-1) < o <= alpha^k."""
    k = max(ceil(log(output_tokens) / log(alpha) - 1e-9), 0)
    while alpha**k < output_tokens - 1e-9:
        k += 1
    return k


def area_class(job: Job, alpha: float) -> tuple[int, int]:
    """Individual prompts (derived): class of the area, then of the prompt within a factor of two."""
    return length_class(job.area, alpha), ceil(log2(max(job.prompt_tokens, 1)))


class Gba:
    """Class by class through SPS; `outputs` are known. Jobs that all wait from the start."""

    def __init__(self, jobs: Sequence[Job], alpha: float = 1.5, individual_prompts: bool = False) -> None:
        key: Callable[[Job], tuple[int, ...]] = (
            (lambda job: area_class(job, alpha))
            if individual_prompts
            else (lambda job: (length_class(job.output_tokens, alpha),))
        )
        classes: dict[tuple[int, ...], list[int]] = {}
        for i, job in enumerate(jobs):
            classes.setdefault(key(job), []).append(i)
        self._jobs = jobs
        self._whole_slices = None if individual_prompts else alpha
        self._classes = deque((k, classes[k]) for k in sorted(classes))
        self._pipeline: Pipeline | None = None

    def plan(self, board: Board) -> None:
        if self._pipeline is None or self._pipeline.over(board):
            self._pipeline = self._next(board)
        if self._pipeline is not None:
            for job in self._pipeline.due(board):
                board.start(job)

    def _next(self, board: Board) -> Pipeline | None:
        if not self._classes:
            return None
        key, members = self._classes.popleft()
        prompt = max(board.prompts[job] for job in members)
        rounds = max(self._jobs[job].output_tokens for job in members)
        if self._whole_slices is not None:
            rounds = max(min(floor(self._whole_slices ** key[0]), board.memory_tokens - prompt), rounds)
        degree = largest_degree(board.memory_tokens, prompt, rounds)
        return Pipeline(members, rounds, degree, board.round)


class GbaD:
    """GBA that refills a freed slot early: same order of classes, each job as soon as PROJ lets it."""

    def __init__(self, jobs: Sequence[Job], alpha: float = 1.5) -> None:
        self._outputs = [job.output_tokens for job in jobs]
        self._order = sorted(range(len(jobs)), key=lambda i: length_class(jobs[i].output_tokens, alpha))

    def plan(self, board: Board) -> None:
        waiting = set(board.waiting)
        start_in_order(board, [i for i in self._order if i in waiting], self._outputs)


def start_in_order(board: Board, order: Sequence[int], outputs: Sequence[int]) -> None:
    """Start the next in order as long as all that runs fits to its end (lengths known)."""
    held = [board.held(job) for job in board.running]
    left = [outputs[job] - made for job, made in board.running.items()]
    for job in order:
        held.append(board.need(job) - 1)
        left.append(outputs[job] - board.kept.get(job, 0))
        if not fits(held, left, board.memory_tokens):
            return
        board.start(job)
