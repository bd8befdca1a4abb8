"""The rounds, PROJ, SPS and the lower bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_worlds import instances, optimum

from kvwatt.scheduling.gba import Gba, GbaD
from kvwatt.scheduling.gsa import Gsa, GsaSpec
from kvwatt.scheduling.jobs import Job, area, total_lower_bound
from kvwatt.scheduling.proj import fits, peak_blocks, peak_tokens
from kvwatt.scheduling.references import AMin, Fcfs, McSf, Mlfq, SortedF, Svf
from kvwatt.scheduling.rounds import Board, Overflow, Scheduler, run
from kvwatt.scheduling.sps import largest_degree, need_tokens, slice_of_area

counts = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 300)), min_size=1, max_size=40)


@given(counts)
def test_proj_is_the_peak_of_memory_played_round_by_round(jobs: list[tuple[int, int]]) -> None:
    """PROJ over distinct remaining lengths equals the largest sum over all coming rounds."""
    held, left = [h for h, _ in jobs], [r for _, r in jobs]
    played = [sum(h + j for h, r in jobs if r >= j) for j in range(1, max(left) + 1)]
    assert peak_tokens(held, left) == max(played)
    assert fits(held, left, max(played)) and not fits(held, left, max(played) - 1)


@given(counts)
def test_proj_in_blocks_of_one_token_is_proj_in_tokens(jobs: list[tuple[int, int]]) -> None:
    """Everybody inside from now on: clock control's question is admission's."""
    held, left = [h for h, _ in jobs], [r for _, r in jobs]
    now, first = [0] * len(jobs), [h + 1 for h in held]
    assert peak_blocks(now, first, left, 1, max(left)).blocks == peak_tokens(held, left)


@given(st.integers(1, 60), st.integers(0, 200), st.integers(1, 200))
def test_a_full_pipeline_needs_what_the_formula_says(degree: int, prompt: int, t: int) -> None:
    """The staggered pipeline's peak memory, played over several turns, equals the formula."""
    starts = [j * t // degree for j in range(6 * degree)]
    peak = max(sum(prompt + now - s + 1 for s in starts if 0 <= now - s < t) for now in range(2 * t, 4 * t))
    assert peak == need_tokens(degree, prompt, t)


@given(st.integers(1, 4000), st.integers(0, 500), st.integers(1, 500))
def test_the_largest_degree_fits_and_one_more_does_not(spare: int, prompt: int, t: int) -> None:
    """Maximality of the degree of the pipeline."""
    memory = prompt + t + spare
    degree = largest_degree(memory, prompt, t)
    assert degree >= 1
    assert need_tokens(degree, prompt, t) <= memory < need_tokens(degree + 1, prompt, t)


@given(st.integers(0, 1000), st.integers(1, 1_000_000))
def test_a_slice_of_area_is_the_longest_that_the_budget_pays(prompt: int, budget: int) -> None:
    """Inverse of the area."""
    t = slice_of_area(prompt, budget)
    assert (t == 0 or area(prompt, t) <= budget) and area(prompt, t + 1) > budget


def test_one_slice_that_does_not_fit_is_refused() -> None:
    """The error names both numbers."""
    with pytest.raises(ValueError, match="one slice needs 120 tokens, the memory has 100"):
        largest_degree(100, 100, 20)


@settings(deadline=None)
@given(instances(common=False, most=4))
def test_the_lower_bound_is_below_the_optimum(world: tuple[list[Job], int]) -> None:
    """Against the brute-force optimum of small instances; and the optimum is not absurdly far."""
    jobs, memory = world
    if sum(job.output_tokens for job in jobs) > 300:
        jobs = [Job(job.prompt_tokens, min(job.output_tokens, 60)) for job in jobs]
    assert total_lower_bound(jobs, memory) <= optimum(jobs, memory) + 1e-6


def schedulers(jobs: list[Job], memory: int) -> dict[str, Scheduler]:
    """All of them; the clairvoyant ones are told the lengths."""
    return {
        "gsa": Gsa(),
        "gsa 1.768": Gsa(1.768, 3.0),
        "gsa by area": Gsa(individual_prompts=True),
        "gsa-spec": GsaSpec(),
        "gsa-spec 4": GsaSpec(4.0, 16.0),
        "gba": Gba(jobs),
        "gba by area": Gba(jobs, individual_prompts=True),
        "gba-d": GbaD(jobs),
        "fcfs": Fcfs(),
        "mc-sf": McSf(jobs),
        "svf": Svf(jobs),
        "sorted-f": SortedF(jobs, memory),
        "a_min": AMin([1] * len(jobs)),
        "mlfq": Mlfq(4, 3),
        "round robin": Mlfq(5, 1),
    }


@settings(deadline=None, max_examples=60)
@given(instances(common=False))
def test_every_scheduler_serves_every_job_within_the_memory(world: tuple[list[Job], int]) -> None:
    """No round overflows, nobody starves, and nobody beats the bound or its own length."""
    jobs, memory = world
    bound = total_lower_bound(jobs, memory)
    for name, scheduler in schedulers(jobs, memory).items():
        outcome = run(jobs, memory, scheduler)
        assert all(c >= job.output_tokens for c, job in zip(outcome.completion, jobs, strict=True)), name
        if name not in ("fcfs", "mlfq", "round robin"):  # those resume where they were stopped
            assert outcome.total >= bound - 1e-6, name
            assert outcome.preemptions == 0, name


@settings(deadline=None, max_examples=40)
@given(instances(), st.lists(st.integers(0, 300), min_size=25, max_size=25))
def test_arrivals_over_time_are_all_served(world: tuple[list[Job], int], arrivals: list[int]) -> None:
    """Online: every job completes, none before its arrival plus its length; prefill lengthens rounds."""
    jobs, memory = world
    late = [Job(j.prompt_tokens, j.output_tokens, a) for j, a in zip(jobs, arrivals, strict=False)]
    for scheduler in (Gsa(), GsaSpec(), Fcfs(), Mlfq(4, 3), AMin([1] * len(late)), McSf(late)):
        outcome = run(late, memory, scheduler, prefill_rounds_per_token=0.01)
        assert outcome.rounds >= max(j.arrival_round + j.output_tokens for j in late)
        # Times with prefill are sums of hundredths: the difference of two of them is rounded.
        assert all(c > j.output_tokens - 1e-6 for c, j in zip(outcome.completion, late, strict=True))
        assert outcome.prefilled_tokens >= sum(j.prompt_tokens for j in late)


def test_an_overfull_round_is_an_error() -> None:
    """A scheduler that starts everybody is stopped by the assertion, not by luck."""

    class Greedy:
        def plan(self, board: Board) -> None:
            for job in list(board.waiting):
                board.start(job)

    with pytest.raises(Overflow, match="round 0 needs 22 of 20 tokens"):
        run([Job(10, 5), Job(10, 5)], 20, Greedy())


def test_a_scheduler_that_serves_nobody_is_an_error() -> None:
    """Starvation of an empty machine does not loop for ever."""

    class Idle:
        def plan(self, board: Board) -> None:
            return None

    with pytest.raises(RuntimeError, match="leaves 1 jobs waiting and runs none"):
        run([Job(1, 1)], 10, Idle())


def test_a_job_larger_than_the_memory_is_refused() -> None:
    """With its number and needs."""
    with pytest.raises(ValueError, match=r"job 1 needs more than the memory of 10 tokens"):
        run([Job(1, 1), Job(5, 6)], 10, Fcfs())
