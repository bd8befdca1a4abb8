"""Capacity tables of the kinds: what they rest on, when they are outdated, and the worker that makes them.

The newest table of each kind is kept on disk, so that a restart plans at once with what the run before knew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
from pydantic import ValidationError

from kvwatt.attainment import targets
from kvwatt.capacity_table import CapacityTable
from kvwatt.compiled import CompiledModel
from kvwattd.instance import InstanceRuntime
from kvwattd.pool.capacity_worker import JOB, MODEL, TABLE, Job, Promise, Shape, Table, save_model
from kvwattd.pool.minutes import Minutes
from kvwattd.whole_file import write_whole

log = logging.getLogger(__name__)

CLOCKS = 8  # of a table: costs a second each, and watts between them are nearly straight
LENGTHS = 32
LEAST_FINISHED = 20.0  # requests whose lengths must be known
CHANGED_RATIO = 0.15  # of mean lengths or dispersion, worth another table
DEADLINE_S = 300.0
MAX_BYTES = 1 << 20
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class CapacityError(Exception):
    """No table came of it."""


def job_of(run: InstanceRuntime, minutes: Minutes) -> tuple[Job, CompiledModel] | None:
    """What a table for this instance would rest on; None while model or lengths are not known."""
    compiled, shape, traffic = run.model.compiled, run.shape(), run.observation.traffic(run.slo)
    outputs, prompts = run.observation.estimator.outputs, run.observation.estimator.prompts
    if compiled is None or shape is None or traffic is None or outputs.weight_requests < LEAST_FINISHED:
        return None
    computed = traffic.prompt_mean_tokens / max(prompts.mean_tokens, 1.0)  # prefix hits are taken off
    levels = ((np.arange(LENGTHS) + 0.5) / LENGTHS).tolist()
    sizes = [max(computed * prompts.quantile(level), 1.0) for level in levels]
    job = Job(
        upper_factor=compiled.upper_factor,
        clocks_mhz=tuple(compiled.clocks_mhz[column] for column in columns_of(compiled)),
        shape=Shape(**asdict(shape)),
        slo={
            str(metric): Promise(limit_s=target.limit_s, quantile=target.quantile)
            for metric, target in targets(run.slo).items()
        },
        prompts=tuple(sizes),
        outputs=tuple(max(outputs.quantile(level), 1.0) for level in levels),
        dispersion=max(traffic.dispersion, 1.0),
        groups=minutes.groups(float(np.std(sizes) / np.mean(sizes))),
    )
    return job, compiled


def columns_of(compiled: CompiledModel) -> list[int]:
    """Clocks spread over all that there are, both ends among them."""
    count = len(compiled.clocks_mhz)
    return sorted({round(place) for place in np.linspace(0, count - 1, min(CLOCKS, count))})


def digest_of(compiled: CompiledModel) -> str:
    """Of the model's numbers at the table's clocks."""
    columns = columns_of(compiled)
    digest = hashlib.sha256()
    for array in (compiled.step_s[:, columns], compiled.busy_w[:, columns], np.asarray(compiled.idle_w)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def outdated(made: Table, job: Job, digest: str) -> bool:
    """Whether the table says something else than one made now would."""
    before = made.job
    fixed = ("upper_factor", "clocks_mhz", "shape", "slo")
    if made.model != digest or any(getattr(before, name) != getattr(job, name) for name in fixed):
        return True
    pairs = (
        (fmean(before.prompts), fmean(job.prompts)),
        (fmean(before.outputs), fmean(job.outputs)),
        (before.dispersion, job.dispersion),
        (_heaviest(before), _heaviest(job)),
    )
    return any(abs(new / old - 1.0) > CHANGED_RATIO for old, new in pairs)


def _heaviest(job: Job) -> float:
    """Prompts in the heaviest minutes, as a factor."""
    return max((group.prompts for group in job.groups), default=1.0)


async def made_by_worker(folder: Path, job: Job, compiled: CompiledModel, digest: str) -> Table:
    """Run the worker, under a deadline. Raises CapacityError, OSError."""
    await asyncio.to_thread(_write, folder, job, compiled)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kvwattd.pool.capacity_worker", str(folder), digest),
        env={**os.environ, **_ONE_THREAD},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            _, said = await process.communicate()
    except TimeoutError:
        raise CapacityError(f"the worker took longer than {DEADLINE_S:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        raise CapacityError(f"the worker ended with {process.returncode}: {lines[-1] if lines else 'silent'}")
    found = await asyncio.to_thread(read, folder)
    if found is None:
        raise CapacityError("the worker left no table")
    return found


def _write(folder: Path, job: Job, compiled: CompiledModel) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / JOB, job.model_dump_json().encode(), durable=False)
    save_model(compiled, columns_of(compiled), folder / MODEL)


def read(folder: Path) -> Table | None:
    """The table kept there, None where there is none or it is no sound one."""
    try:
        with (folder / TABLE).open("rb") as file:
            found = Table.model_validate_json(file.read(MAX_BYTES))
        found.capacity()
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError) as error:
        log.warning("pool: %s cannot be used: %s", folder / TABLE, type(error).__name__)
        return None
    return found


def told(table: CapacityTable) -> str:
    """For the log."""
    clocks = table.clocks_mhz
    return f"up to {table.max_rate_per_s:.2f} requests/s within the promises, {clocks[0]}-{clocks[-1]} MHz"
