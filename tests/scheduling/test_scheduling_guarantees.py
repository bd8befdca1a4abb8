"""The constants that are proved for GSA and GBA, over random and searched instances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_worlds import instances

from kvwatt.scheduling.gba import BEST_ALPHA as GBA_ALPHA
from kvwatt.scheduling.gba import Gba, GbaD, length_class, pays
from kvwatt.scheduling.gsa import BEST_ALPHA as GSA_ALPHA
from kvwatt.scheduling.gsa import Gsa, GsaSpec
from kvwatt.scheduling.instances import lmsys_like, random_instance, search_bad, two_point
from kvwatt.scheduling.jobs import Job, total_lower_bound
from kvwatt.scheduling.references import AMin, Fcfs, McSf
from kvwatt.scheduling.rounds import Scheduler, run

GSA_BOUND, GBA_BOUND = 61.92, 10.67
GSA_LARGE, GBA_LARGE = 32.0, 6.75  # with large memory


def ratio(make: Callable[[Sequence[Job]], Scheduler], jobs: Sequence[Job], memory: int) -> float:
    """Total completion over the lower bound: never less than the true ratio."""
    return run(jobs, memory, make(jobs)).total / total_lower_bound(jobs, memory)


@settings(deadline=None)
@given(instances())
def test_gsa_and_gba_keep_their_proven_constants(world: tuple[list[Job], int]) -> None:
    """For a common prompt, at the alphas of the general bounds."""
    jobs, memory = world
    assert ratio(lambda _: Gsa(GSA_ALPHA), jobs, memory) <= GSA_BOUND
    assert ratio(lambda _: GsaSpec(GSA_ALPHA), jobs, memory) <= GSA_BOUND
    assert ratio(lambda j: Gba(j, GBA_ALPHA), jobs, memory) <= GBA_BOUND
    assert ratio(lambda j: GbaD(j, GBA_ALPHA), jobs, memory) <= GBA_BOUND


def test_a_search_for_bad_instances_stays_inside_the_constants() -> None:
    """The search finds worse instances than it began with, and never one beyond the constant."""
    rng = np.random.default_rng(11)
    memory = 120
    start = random_instance(rng, memory, 12, individual_prompts=False)
    for make, bound in (
        (lambda _: Gsa(GSA_ALPHA), GSA_BOUND),
        (lambda j: Gba(j, GBA_ALPHA), GBA_BOUND),
    ):
        measured = lambda jobs, make=make: ratio(make, jobs, memory)  # noqa: E731
        _, worst = search_bad(rng, start, memory, measured, steps=150)
        assert measured(start) < worst <= bound


def test_the_papers_two_point_instance_hurts_fcfs_and_not_gsa() -> None:
    """6 jobs of 160 before 194 of 1, s = 96, M = 256: long jobs block the line."""
    jobs = two_point(6, 160, 194, 1, 96)
    bound = total_lower_bound(jobs, 256)
    gsa = run(jobs, 256, Gsa()).total / bound
    fcfs = run(jobs, 256, Fcfs()).total / bound
    assert gsa < 2.5 < fcfs


def test_gsa_spec_beats_fcfs_and_a_min_on_the_rounded_setting() -> None:
    """Powers of two as in the paper's experiment, s = 79, M = 4096; three instances."""
    spec = kept = killed = a_min = 0.0
    for seed in range(3):
        jobs = lmsys_like(np.random.default_rng(seed), 200, rounded=True)
        spec += run(jobs, 4096, GsaSpec(first=64.0)).total
        kept += run(jobs, 4096, Fcfs()).total
        killed += run(jobs, 4096, Fcfs(keep=False)).total
        a_min += run(jobs, 4096, AMin([1] * len(jobs))).total
    assert spec < min(kept, killed, a_min)


def test_gba_d_is_near_the_lower_bound_on_the_papers_setting() -> None:
    """Within 1.5 of what no schedule can beat."""
    jobs = lmsys_like(np.random.default_rng(7), 300)
    assert ratio(GbaD, jobs, 4096) <= 1.5


def test_length_classes_are_half_open() -> None:
    """alpha^(k-1) < o <= alpha^k, at the borders too."""
    assert [length_class(o, 2.0) for o in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]
    for o in range(1, 2000):
        k = length_class(o, 1.5)
        assert 1.5**k >= o - 1e-6 and (k == 0 or 1.5 ** (k - 1) < o)


@pytest.mark.parametrize(
    ("n", "memory", "rounded"), [(100, 8192, True), (400, 4096, True), (400, 4096, False)]
)
def test_gba_d_stays_within_1_5_where_lengths_are_equal_or_few(n: int, memory: int, rounded: bool) -> None:
    """Equal lengths keep a pipeline's distance, few jobs start together: both have less than 1.5."""
    jobs = lmsys_like(np.random.default_rng(7), n, rounded=rounded)
    assert ratio(GbaD, jobs, memory) <= 1.42


def test_a_pipeline_pays_for_many_jobs_and_not_for_few() -> None:
    """A class of equal jobs is served faster on average by what `pays` says, at both ends."""
    for n, staggered in ((20, False), (400, True)):
        assert pays(n, 4096, 79, 128) == staggered
    many = [Job(79, 128)] * 400
    together = run(many, 4096, McSf(many)).total  # as many as fit, again and again
    assert run(many, 4096, GbaD(many)).total < 0.9 * together


@settings(deadline=None, max_examples=30)
@given(instances(most=60), st.integers(12, 40))
def test_with_large_memory_the_smaller_constants_hold(world: tuple[list[Job], int], times: int) -> None:
    """Memory many times what one job needs: GSA within 32, GBA within 6.75, at the alphas of these bounds.

    As many jobs as it takes for the memory to bind."""
    jobs, _ = world
    some = [Job(job.prompt_tokens, min(job.output_tokens, 60)) for job in jobs]
    memory = times * max(job.prompt_tokens + job.output_tokens for job in some)
    many = some * (2 * times)
    assert ratio(lambda _: Gsa(2.0), many[:800], memory) <= GSA_LARGE
    assert ratio(lambda j: Gba(j, 1.5), many[:800], memory) <= GBA_LARGE
