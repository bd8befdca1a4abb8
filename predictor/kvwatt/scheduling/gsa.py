"""GSA: geometric slices without knowing any length (arXiv 2601.22996), and its speculative variant.

In phase k every survivor runs through SPS with slice t_k = t0 a^k and is killed if it is not done. Total
completion time is at most 61.92 times the best possible, 32 times with large memory (proved there).

With arrivals, each job keeps its own phase and the lowest one goes first (derived). With individual
prompts the slice is an area budget a^k, and jobs of similar prompts share a pipeline (derived).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

from kvwatt.scheduling.proj import peak_blocks
from kvwatt.scheduling.rounds import Board
from kvwatt.scheduling.sps import Pipeline, largest_degree, slice_of_area

BEST_ALPHA = 1.768  # of the general bound, 61.92; the large-memory bound, 32, is at 2


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs that share one pipeline."""

    jobs: tuple[int, ...]
    prompt_tokens: int  # the largest of them
    slice_rounds: int


def by_length(board: Board, jobs: Sequence[int], budget: float) -> list[Group]:
    """Common prompt: one group, slice = budget in rounds."""
    prompt = max(board.prompts[job] for job in jobs)
    return [Group(tuple(jobs), prompt, min(ceil(budget), board.memory_tokens - prompt))]


def by_area(board: Board, jobs: Sequence[int], budget: float) -> list[Group]:
    """Individual prompts: groups within a factor two of prompt, slice = what the area `budget` allows.

    A group whose budget does not pay one round gets none in this phase.
    """
    classes: dict[int, list[int]] = {}
    for job in jobs:
        classes.setdefault(ceil(log2(max(board.prompts[job], 1))), []).append(job)
    groups = []
    for key in sorted(classes):
        prompt = max(board.prompts[job] for job in classes[key])
        rounds = min(slice_of_area(prompt, ceil(budget)), board.memory_tokens - prompt)
        if rounds >= 1:
            groups.append(Group(tuple(classes[key]), prompt, rounds))
    return groups


class Gsa:
    """`first`: budget of the first phase, in rounds by length or token-rounds by area."""

    def __init__(self, alpha: float = 2.0, first: float = 1.0, individual_prompts: bool = False) -> None:
        if not alpha > 1.0 or not first >= 1.0:
            raise ValueError(f"alpha must be > 1 and first >= 1, got {alpha} and {first}")
        self._alpha, self._first = alpha, first
        self._group = by_area if individual_prompts else by_length
        self._phase: dict[int, int] = {}
        self._groups: list[Group] = []
        self._pipeline: Pipeline | None = None

    def plan(self, board: Board) -> None:
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.stop_due(board, board.kill)
        if pipeline is None or pipeline.over(board):
            pipeline = self._pipeline = self._next(board)
        if pipeline is not None:
            for job in pipeline.due(board):
                self._begin(board, pipeline, job)

    def _begin(self, board: Board, pipeline: Pipeline, job: int) -> None:
        board.start(job)

    def _candidates(self, board: Board) -> list[int]:
        return board.waiting

    def _next(self, board: Board) -> Pipeline | None:
        """The next group of the lowest phase; every member moves on to the phase after."""
        candidates = self._candidates(board)
        while not self._groups and candidates:
            phase = min(self._phase.get(job, 0) for job in candidates)
            members = sorted(job for job in candidates if self._phase.get(job, 0) == phase)
            self._groups = self._group(board, members, self._first * self._alpha**phase)
            self._phase.update(dict.fromkeys(members, phase + 1))
        if not self._groups:
            return None
        group = self._groups.pop(0)
        degree = largest_degree(board.memory_tokens, group.prompt_tokens, group.slice_rounds)
        return Pipeline(self._alive(board, group), group.slice_rounds, degree, board.round)

    def _alive(self, board: Board, group: Group) -> list[int]:
        alive = set(self._candidates(board))
        return [job for job in group.jobs if job in alive]


class GsaSpec(Gsa):
    """GSA whose spare memory runs jobs ahead of their turn; they are killed only under pressure.

    A job whose turn comes while it runs keeps its progress if everything guaranteed, to the end of the
    pipeline's plan, still fits with it; else it starts anew as GSA would. At the end of its slice a job
    goes on as speculative. So nobody is served later than by GSA's plan of the same phases (derived).
    """

    def __init__(self, alpha: float = 2.0, first: float = 1.0) -> None:
        super().__init__(alpha, first)
        self._guaranteed: dict[int, int] = {}  # job -> round at which its slice ends

    def plan(self, board: Board) -> None:
        self._guaranteed = {
            job: end for job, end in self._guaranteed.items() if job in board.running and board.round < end
        }
        pipeline = self._pipeline
        if pipeline is None or self._passed(pipeline):
            pipeline = self._pipeline = self._next(board)
        if pipeline is not None:
            for job in pipeline.due(board):
                if job in board.running or job in board.waiting:
                    self._begin(board, pipeline, job)
        self._relieve(board)
        self._speculate(board)

    def _passed(self, pipeline: Pipeline) -> bool:
        return not pipeline.upcoming and not any(job in self._guaranteed for job in pipeline.starts)

    def _candidates(self, board: Board) -> list[int]:
        return [*board.running, *board.waiting]

    def _begin(self, board: Board, pipeline: Pipeline, job: int) -> None:
        made = board.running.get(job, 0)
        if made >= pipeline.slice_rounds:
            return  # it has had more than this slice already and stays speculative
        if made and not self._plan_fits(board, pipeline, job, made):
            board.kill(job)
            made = 0
        if job not in board.running:
            board.start(job)
        self._guaranteed[job] = board.round + pipeline.slice_rounds - made

    def _plan_fits(self, board: Board, pipeline: Pipeline, job: int, made: int) -> bool:
        """Memory of all that is guaranteed, the job with its progress, and every start still planned."""
        t, now = pipeline.slice_rounds, board.round
        left = t - made
        soon = [j for j in pipeline.upcoming if pipeline.starts[j] < now + left]
        starts = [0] * (len(self._guaranteed) + 1) + [pipeline.starts[j] - now for j in soon]
        held = [board.held(j) + 1 for j in self._guaranteed] + [board.prompts[job] + made + 1]
        held += [board.prompts[j] + 1 for j in soon]
        rounds = [end - now for end in self._guaranteed.values()] + [left] + [t] * len(soon)
        return peak_blocks(starts, held, rounds, 1, left).blocks <= board.memory_tokens

    def _relieve(self, board: Board) -> None:
        """Kill speculative jobs, the least advanced first, until the round fits."""
        used = board.used_tokens
        for job in sorted(self._speculative(board), key=lambda j: (board.running[j], -j)):
            if used <= board.memory_tokens:
                return
            used -= board.held(job) + 1
            board.kill(job)

    def _speculative(self, board: Board) -> list[int]:
        return [job for job in board.running if job not in self._guaranteed]

    def _speculate(self, board: Board) -> None:
        """Fill what is free now with whoever waits, in order; nothing is reserved for them."""
        free = board.memory_tokens - board.used_tokens
        for job in list(board.waiting):
            if board.need(job) > free:
                return
            free -= board.need(job)
            board.start(job)
