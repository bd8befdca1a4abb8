"""What GSA and GBA are compared with, each as its source describes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvwatt.scheduling.gba import start_in_order
from kvwatt.scheduling.jobs import Job
from kvwatt.scheduling.proj import fits
from kvwatt.scheduling.rounds import Board


class Fcfs:
    """vLLM: admit while the next round fits; on overflow stop the last admitted, which keeps its tokens.

    `keep` False: it loses them, as the paper's model has it.
    """

    def __init__(self, keep: bool = True) -> None:
        self._keep = keep

    def plan(self, board: Board) -> None:
        used = board.used_tokens
        preempted = False
        for job in reversed(list(board.running)):
            if used <= board.memory_tokens:
                break
            used -= board.held(job) + 1
            self._stop(board, job)
            preempted = True
        while board.waiting and not preempted and used + board.need(board.waiting[0]) <= board.memory_tokens:
            used += board.need(board.waiting[0])
            board.start(board.waiting[0])

    def _stop(self, board: Board, job: int) -> None:
        if self._keep:
            board.preempt(job)
        else:
            board.kill(job)
            board.waiting.insert(0, board.waiting.pop())


class _Ordered:
    """Clairvoyant, non-preemptive: a fixed order, each started as soon as PROJ lets it."""

    def __init__(self, jobs: Sequence[Job], order: Sequence[int]) -> None:
        self._outputs = [job.output_tokens for job in jobs]
        self._order = list(order)

    def plan(self, board: Board) -> None:
        waiting = set(board.waiting)
        start_in_order(board, [i for i in self._order if i in waiting], self._outputs)


class McSf(_Ordered):
    """MC-SF (arXiv 2502.07115): shortest output first."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(jobs, sorted(range(len(jobs)), key=lambda i: jobs[i].output_tokens))


class Svf(_Ordered):
    """SVF (arXiv 2606.22327): smallest area first."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(jobs, sorted(range(len(jobs)), key=lambda i: jobs[i].area))


class SortedF(_Ordered):
    """Sorted-F (arXiv 2508.06133): batches that minimise F = sum(o) / n^2, each shortest first.

    The best batch is searched greedily over prefixes of the jobs ordered by output and by size (s + o);
    with a common prompt the prefix by output is exact.
    """

    def __init__(self, jobs: Sequence[Job], memory_tokens: int) -> None:
        order: list[int] = []
        rest = set(range(len(jobs)))
        while rest:
            orders = (
                sorted(rest, key=lambda i: (jobs[i].output_tokens, jobs[i].prompt_tokens)),
                sorted(rest, key=lambda i: jobs[i].prompt_tokens + jobs[i].output_tokens),
            )
            batches = [self._prefix(jobs, o, memory_tokens) for o in orders]
            batch = min(batches, key=lambda b: sum(jobs[i].output_tokens for i in b) / len(b) ** 2)
            order += sorted(batch, key=lambda i: jobs[i].output_tokens)
            rest -= set(batch)
        super().__init__(jobs, order)

    @staticmethod
    def _prefix(jobs: Sequence[Job], order: Sequence[int], memory_tokens: int) -> list[int]:
        """The prefix of least F among those that fit when started together."""
        best, least, total = 1, float("inf"), 0
        for n, i in enumerate(order, 1):
            total += jobs[i].output_tokens
            held = [jobs[j].prompt_tokens for j in order[:n]]
            if not fits(held, [jobs[j].output_tokens for j in order[:n]], memory_tokens):
                break
            if total / n**2 <= least:
                best, least = n, total / n**2
        return list(order[:best])


class AMin:
    """A_min (arXiv 2508.14544): knows a lower bound of each length, and raises it as tokens come.

    Admits the smallest bound first while PROJ over the bounds fits; on overflow kills the smallest bound.
    """

    def __init__(self, lower_bounds: Sequence[int]) -> None:
        self._bound = list(lower_bounds)

    def plan(self, board: Board) -> None:
        used = board.used_tokens
        for job, made in board.running.items():
            self._bound[job] = max(self._bound[job], made + 1)
        killed = False
        for job in sorted(board.running, key=lambda j: (self._bound[j], -j)):
            if used <= board.memory_tokens:
                break
            used -= board.held(job) + 1
            board.kill(job)
            killed = True
        if not killed:
            start_in_order(board, sorted(board.waiting, key=lambda j: (self._bound[j], j)), self._bound)


class Mlfq:
    """FastServe's multi-level feedback queue: level k has a quantum of `quantum` 2^k; tokens are kept.

    `levels` = 1 is round robin.
    """

    def __init__(self, quantum: int = 32, levels: int = 8) -> None:
        self._quantum, self._levels = quantum, levels
        self._queues: list[deque[int]] = [deque() for _ in range(levels)]
        self._level: dict[int, int] = {}
        self._used: dict[int, int] = {}

    def plan(self, board: Board) -> None:
        for job in board.waiting:
            if job not in self._level:
                self._level[job], self._used[job] = 0, 0
                self._queues[0].append(job)
        self._demote(board)
        chosen = self._choose(board)
        for job in [j for j in board.running if j not in chosen]:
            board.preempt(job)
        for job in chosen:
            if job not in board.running:
                board.start(job)
            self._used[job] += 1

    def _demote(self, board: Board) -> None:
        """Whoever has used its quantum goes to the end of the next level (of its own, at the last)."""
        present = set(board.running) | set(board.waiting)
        for k, queue in enumerate(self._queues):
            self._queues[k] = deque(job for job in queue if job in present)
        for job in board.running:
            level = self._level[job]
            if self._used[job] >= self._quantum * 2**level:
                self._queues[level].remove(job)
                self._level[job] = min(level + 1, self._levels - 1)
                self._used[job] = 0
                self._queues[self._level[job]].append(job)

    def _choose(self, board: Board) -> list[int]:
        """By level, then by turn, until one does not fit."""
        free = board.memory_tokens
        chosen: list[int] = []
        for queue in self._queues:
            for job in queue:
                need = board.held(job) + 1 if job in board.running else board.need(job)
                if need > free:
                    return chosen
                free -= need
                chosen.append(job)
        return chosen
