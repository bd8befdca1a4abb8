"""GBA: the clairvoyant counterpart of GSA (arXiv 2601.22996): length classes, shortest first, by SPS.

Total completion time is at most 10.67 times the best possible, 6.75 times with large memory.
"""

from __future__ import annotations

from collections import Counter, deque
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
    """GBA that refills a freed slot early: same order of classes, each job as soon as PROJ lets it.

    Jobs of like length that start together end together, and the memory that they free at once fills in
    steps. Where a class is so large that its own pipeline pays for the slow start, its starts keep the
    pipeline's distance, each job's own length over its degree (derived; see `pays`).
    """

    def __init__(self, jobs: Sequence[Job], alpha: float = 1.5) -> None:
        self._outputs = [job.output_tokens for job in jobs]
        self._class = [length_class(job.output_tokens, alpha) for job in jobs]
        self._order = sorted(range(len(jobs)), key=self._class.__getitem__)
        self._sizes = Counter(self._class)
        self._slices: dict[int, int] = {}
        for k, output in zip(self._class, self._outputs, strict=True):
            self._slices[k] = max(self._slices.get(k, 0), output)
        self._next_start = 0.0

    def plan(self, board: Board) -> None:
        waiting = set(board.waiting)
        ahead = [i for i in self._order if i in waiting]
        start_in_order(board, ahead, self._outputs, self._may_start)

    def _may_start(self, board: Board, job: int) -> bool:
        """Whether its distance to the last start is kept; if so, the next one's is set."""
        if board.round < self._next_start:
            return False
        k, memory, prompt = self._class[job], board.memory_tokens, board.prompts[job]
        if pays(self._sizes[k], memory, prompt, self._slices[k]):
            distance = self._outputs[job] / largest_degree(memory, prompt, self._outputs[job])
            self._next_start = max(self._next_start, board.round - 1) + distance
        return True


def pays(jobs: int, memory_tokens: int, prompt_tokens: int, rounds: int) -> bool:
    """Whether the pipeline serves `jobs` of that length faster on average than batches do (derived).

    Of n jobs of length t the mean completion is t (1/2 + n / 2b) in batches of b = M / (s + t), and
    t (1 + n / 2D) in a pipeline of degree D: the pipeline wins when n (1/b - 1/D) > 1.
    """
    batch = memory_tokens // (prompt_tokens + rounds)
    return jobs * (1.0 / batch - 1.0 / largest_degree(memory_tokens, prompt_tokens, rounds)) > 1.0


def start_in_order(
    board: Board,
    order: Sequence[int],
    outputs: Sequence[int],
    may_start: Callable[[Board, int], bool] | None = None,
) -> None:
    """Start the next in order as long as all that runs fits to its end (lengths known), and `may_start`."""
    held = [board.held(job) for job in board.running]
    left = [outputs[job] - made for job, made in board.running.items()]
    for job in order:
        held.append(board.need(job) - 1)
        left.append(outputs[job] - board.kept.get(job, 0))
        if not fits(held, left, board.memory_tokens) or (may_start and not may_start(board, job)):
            return
        board.start(job)
