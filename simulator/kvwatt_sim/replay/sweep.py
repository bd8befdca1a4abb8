"""Many replays: in this process, in several, or on a Dask cluster; each result is given out as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context

from kvwatt_sim.replay.jobs import Job, Row, run_job
from kvwatt_sim.traces import TraceRequest

CONNECT_S = 10.0

Traces = Mapping[str, tuple[TraceRequest, ...]]
_traces: dict[str, tuple[TraceRequest, ...]] = {}  # of a worker process


class ClusterError(Exception):
    """The cluster cannot be reached or used."""


def run_all(
    jobs: Sequence[Job], traces: Traces, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[Job, Row]]:
    """Every job with its result, in the order in which they end.

    Raises ClusterError, and what `run_job` raises.
    """
    if scheduler is not None:
        return _on_cluster(jobs, traces, scheduler)
    if workers > 1 and len(jobs) > 1:
        return _in_processes(jobs, traces, workers)
    return ((job, run_job(job, traces[job.trace])) for job in jobs)


def _in_processes(jobs: Sequence[Job], traces: Traces, workers: int) -> Iterator[tuple[Job, Row]]:
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), initializer=_begin, initargs=(dict(traces),)
    )
    with pool:
        futures = {pool.submit(_run_here, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(traces: dict[str, tuple[TraceRequest, ...]]) -> None:
    _traces.update(traces)


def _run_here(job: Job) -> Row:
    return run_job(job, _traces[job.trace])


def _on_cluster(jobs: Sequence[Job], traces: Traces, scheduler: str) -> Iterator[tuple[Job, Row]]:
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(f"{error.name} is not installed: pip install 'kvwatt[fleet]'") from error
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=True)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler at {scheduler}: {error}") from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise ClusterError(f"the Dask scheduler at {scheduler} has no workers")
        sent = {name: client.scatter([trace], broadcast=True)[0] for name, trace in traces.items()}
        futures = {client.submit(run_job, job, sent[job.trace], pure=False): job for job in jobs}
        try:
            for future in distributed.as_completed(futures):
                yield futures[future], future.result()
        finally:
            with suppress(Exception):  # closing cancels what is left, too
                client.cancel(list(futures))
