"""The rounds: a scheduler starts and stops jobs on a board, which keeps the books and the memory.

A scheduler sees who waits, who runs and how far; lengths to come it sees only if it was given them.
Every round in which the memory would overflow raises: feasibility is asserted, not assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvwatt.scheduling.jobs import Job, check


class Overflow(Exception):  # noqa: N818 - the field's word
    """A scheduler asked for more memory than there is."""


class Scheduler(Protocol):
    """`plan` is called at the start of every round and starts, kills and preempts on the board."""

    def plan(self, board: Board) -> None: ...


@dataclass(slots=True)
class Board:
    """Who waits (in order) and who runs (in order of admission), by job number.

    `kept[i]`: tokens that a preempted job keeps; their KV is computed again when it restarts.
    """

    memory_tokens: int
    prompts: tuple[int, ...]
    round: int = 0
    waiting: list[int] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)  # job -> tokens produced so far
    kept: dict[int, int] = field(default_factory=dict)
    wasted_tokens: int = 0  # produced and thrown away by kills
    prefilled_tokens: int = 0
    kills: int = 0
    preemptions: int = 0

    def held(self, job: int) -> int:
        """KV tokens of a running job at the end of the last round."""
        return self.prompts[job] + self.running[job]

    def need(self, job: int) -> int:
        """KV tokens that a waiting job takes in its first round."""
        return self.prompts[job] + self.kept.get(job, 0) + 1

    @property
    def used_tokens(self) -> int:
        """KV tokens held during the round that is being planned."""
        return sum(self.prompts[job] + made + 1 for job, made in self.running.items())

    def start(self, job: int) -> None:
        self.waiting.remove(job)
        self.running[job] = self.kept.pop(job, 0)
        self.prefilled_tokens += self.held(job)

    def kill(self, job: int) -> None:
        """Stop it; all that it produced is lost. It waits at the end."""
        self.wasted_tokens += self.running.pop(job)
        self.kills += 1
        self.waiting.append(job)

    def preempt(self, job: int) -> None:
        """Stop it; what it produced is kept, its KV is not. It waits at the front."""
        self.kept[job] = self.running.pop(job)
        self.preemptions += 1
        self.waiting.insert(0, job)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`completion`: per job, time at the end of its last round, counted from its arrival."""

    completion: tuple[float, ...]
    rounds: int
    wasted_tokens: int
    prefilled_tokens: int
    kills: int
    preemptions: int

    @property
    def total(self) -> float:
        return sum(self.completion)


def run(
    jobs: Sequence[Job], memory_tokens: int, scheduler: Scheduler, prefill_rounds_per_token: float = 0.0
) -> Outcome:
    """Play rounds until every job has completed.

    A round takes time 1, and `prefill_rounds_per_token` more for every token of KV computed in it (the
    paper charges none). Raises Overflow if the scheduler overfills the memory, ValueError for a job that
    never fits, RuntimeError for a scheduler that leaves an empty machine idle for ever.
    """
    check(jobs, memory_tokens)
    arrivals = sorted(range(len(jobs)), key=lambda i: jobs[i].arrival_round)
    board = Board(memory_tokens, tuple(job.prompt_tokens for job in jobs))
    now, done, idle, next_arrival = 0.0, 0, 0, 0
    arrived_at = [0.0] * len(jobs)
    completion = [0.0] * len(jobs)
    while done < len(jobs):
        while next_arrival < len(jobs) and jobs[arrivals[next_arrival]].arrival_round <= board.round:
            board.waiting.append(arrivals[next_arrival])
            arrived_at[arrivals[next_arrival]] = now
            next_arrival += 1
        before = board.prefilled_tokens
        scheduler.plan(board)
        _assert_fits(board)
        now += 1.0 + prefill_rounds_per_token * (board.prefilled_tokens - before)
        board.round += 1
        idle = 0 if board.running or not board.waiting else idle + 1
        if idle > memory_tokens:
            raise RuntimeError(f"{scheduler!r} leaves {len(board.waiting)} jobs waiting and runs none")
        for job in _advance(board, jobs):
            completion[job] = now - arrived_at[job]
            done += 1
    return Outcome(
        tuple(completion),
        board.round,
        board.wasted_tokens,
        board.prefilled_tokens,
        board.kills,
        board.preemptions,
    )


def _assert_fits(board: Board) -> None:
    used = board.used_tokens
    if used > board.memory_tokens:
        raise Overflow(f"round {board.round} needs {used} of {board.memory_tokens} tokens")


def _advance(board: Board, jobs: Sequence[Job]) -> list[int]:
    """One token for everybody; whoever has its last one leaves."""
    for job in board.running:
        board.running[job] += 1
    finished = [job for job, made in board.running.items() if made >= jobs[job].output_tokens]
    for job in finished:
        del board.running[job]
    return finished
