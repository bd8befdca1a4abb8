"""`kvwatt replay --scheduler`: a sweep on a cluster of processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvwatt_sim.replay.jobs import Job
from kvwatt_sim.replay.sweep import ClusterError, run_all
from kvwatt_sim.workload import generate

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'kvwatt[fleet]'")

TRACES = {"short": generate(6.0, 240.0, seed=0)}
JOBS = [
    Job("l20", "short", load, "paper", policy, seed)
    for load in (0.4, 0.8)
    for policy in ("max", "fixed-1200")
    for seed in (1, 2)
]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster with two worker processes."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same_rows(scheduler: str) -> None:
    """Every job once, with the numbers that this process finds by itself."""
    here = dict(run_all(JOBS, TRACES))
    there = dict(run_all(JOBS, TRACES, scheduler=scheduler))
    assert there == here
    assert len(there) == len(JOBS)


def test_a_failing_job_is_told(scheduler: str) -> None:
    """What a worker raises is raised here."""
    with pytest.raises(ValueError, match=r"plant = 'l21'"):
        list(run_all([Job("l21", "short", 0.5, "paper", "max", 1)], TRACES, scheduler=scheduler))


def test_no_cluster_is_told() -> None:
    """An address where nobody listens, and one that is none."""
    for address in ("tcp://127.0.0.1:1", "nowhere"):
        with pytest.raises(ClusterError, match=r"no Dask scheduler at"):
            list(run_all(JOBS, TRACES, scheduler=address))
