"""Refits models online: hands recent operating points to a worker process and takes over what won.

    every refit_s, instance by instance:  samples -> job.json -> worker -> result.json -> VersionStore.add

The loop only waits for the child, under a deadline; disk work is done in threads. A worker that fails,
hangs or outgrows its limits costs a log line: the champion goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kvwatt.artifact import PROFILE
from kvwatt.samples import sample_from, sample_values
from kvwattd.api.schemas import RefitOutcome, RefitView
from kvwattd.instance import InstanceRuntime
from kvwattd.learning import Learner
from kvwattd.model_versions import Record, Version, VersionError, VersionStore
from kvwattd.refit_worker import JOB, MODEL, RESULT, Job, Result, Shape
from kvwattd.whole_file import write_whole

log = logging.getLogger(__name__)

DEADLINE_S = 600.0  # of wall clock, for it yields to everybody; its own limit is on processor time
WORKER = "kvwattd.refit_worker"
SAMPLES = "samples.json"
MAX_SAMPLES_BYTES = 1 << 24
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class RefitStatus:
    """What became of the refits of one instance."""

    last: RefitOutcome | None = None
    reason: str = ""
    finished_unix_s: float | None = None
    outcomes: Counter[RefitOutcome] = field(default_factory=Counter)


class Kept(BaseModel):
    """Samples on disk, and the served model that they are of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    served: str = ""
    samples: list[list[float | None]] = []


class Refits:
    """All refits of the daemon, one worker at a time. `period_s` 0: never."""

    def __init__(
        self,
        period_s: float,
        stores: Mapping[str, VersionStore],
        learners: Mapping[str, Learner],
        promoted: Callable[[], None],
    ) -> None:
        self._period_s = period_s
        self._stores = stores
        self._learners = learners
        self._promoted = promoted
        self.status = {name: RefitStatus() for name in stores}

    async def run(self, runs: Mapping[str, InstanceRuntime]) -> None:
        """Restore what earlier runs saw, then refit at every period until cancelled."""
        if self._period_s <= 0:
            return
        for name in list(self._learners):
            await self._restore(name)
        while True:
            await asyncio.sleep(self._period_s)
            for run in list(runs.values()):
                if run.model.compiled is not None and runs.get(run.name) is run:
                    await self.refit(run)

    async def admit(self, name: str) -> None:
        """An instance that came while running; its store and learner are there already."""
        self.status[name] = RefitStatus()
        if self._period_s > 0:
            await self._restore(name)

    async def _restore(self, name: str) -> None:
        kept, seen = await asyncio.to_thread(restored, self._stores[name])
        self._learners[name].restore(kept.served, map(sample_from, kept.samples), seen)

    def view(self, name: str) -> RefitView:
        """What REST shows."""
        status = self.status[name]
        return RefitView(
            enabled=self._period_s > 0,
            samples=len(self._learners[name].ring),
            last=status.last,
            reason=status.reason,
            finished_unix_s=status.finished_unix_s,
            outcomes_total=dict(status.outcomes),
        )

    async def refit(self, run: InstanceRuntime) -> None:
        """One refit of one instance, whatever comes of it."""
        try:
            result = await self._refit(run)
        except (OSError, ValueError, VersionError) as error:
            result = Result(outcome="failed", reason=str(error))
        status = self.status[run.name]
        news = (status.last, status.reason) != (result.outcome, result.reason)
        status.last, status.reason = result.outcome, result.reason
        status.finished_unix_s = time.time()
        status.outcomes[result.outcome] += 1
        level = logging.WARNING if result.outcome == "failed" and news else logging.INFO
        log.log(level, "instance %s: refit %s: %s", run.name, result.outcome, result.reason)
        if result.outcome == "promoted":
            self._promoted()

    async def _refit(self, run: InstanceRuntime) -> Result:
        store, learner = self._stores[run.name], self._learners[run.name]
        samples = [sample_values(sample) for sample in learner.ring.samples()]
        shape, compiled = run.shape(), run.model.compiled
        if shape is None or compiled is None:
            return Result(outcome="failed", reason="no model serves")
        prepared = await asyncio.to_thread(_prepare, store, Kept(served=learner.served, samples=samples))
        if isinstance(prepared, Result):
            return prepared
        champion, base = prepared
        job = Job(
            shipped=store.shipped,
            champion=champion.path,
            seen_through=champion.record.trained_through,
            samples=samples,
            clocks_mhz=compiled.clocks_mhz,
            shape=Shape(**asdict(shape)),
        )
        folder = store.folder / "job"
        await asyncio.to_thread(_write_job, folder, job)
        failure = await run_worker(folder)
        return await asyncio.to_thread(_take_over, store, folder, failure, champion, base)


def _prepare(store: VersionStore, kept: Kept) -> tuple[Version, str] | Result:
    """The champion and the shipped model's name, or why there can be no refit; keeps the samples."""
    store.folder.mkdir(parents=True, exist_ok=True)
    _keep_samples(store.folder / SAMPLES, kept)
    if not (store.shipped / PROFILE).exists():
        reason = f"{store.shipped} holds no {PROFILE}: train the model again to have it refitted"
        return Result(outcome="failed", reason=reason)
    if store.current().held:
        return Result(outcome="kept", reason="held since a rollback")
    return store.serving(), store.base_sha256()


def _take_over(
    store: VersionStore, folder: Path, failure: str | None, champion: Version, base: str
) -> Result:
    if failure is not None:
        return Result(outcome="failed", reason=failure)
    result = Result.model_validate_json((folder / RESULT).read_bytes())
    if result.outcome != "promoted":
        return result
    record = Record(
        base_sha256=base,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parent=champion.number,
        trained_through=result.trained_through,
        samples=result.samples,
        champion_error=result.champion_error,
        challenger_error=result.challenger_error,
        reason=result.reason,
    )
    number = store.add(folder / MODEL, record)
    if number is None:
        return Result(outcome="kept", reason="another model came to serve, or was held, during the refit")
    return result.model_copy(update={"reason": f"version {number} serves: {result.reason}"})


def _write_job(folder: Path, job: Job) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / JOB).write_text(job.model_dump_json(), encoding="utf-8")


async def run_worker(folder: Path, deadline_s: float = DEADLINE_S, module: str = WORKER) -> str | None:
    """Run a worker over a job; why it failed, None if there is a result. Never leaves it running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        str(folder),
        env={**os.environ, **_ONE_THREAD},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), deadline_s)
    except TimeoutError:
        return f"the worker took longer than {deadline_s:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        return None
    lines = said.decode(errors="replace").strip().splitlines()
    return f"the worker ended with {process.returncode}: {lines[-1] if lines else 'no message'}"


def _keep_samples(path: Path, kept: Kept) -> None:
    """So that a restart does not forget them."""
    write_whole(path, kept.model_dump_json().encode(), durable=False)


def restored(store: VersionStore) -> tuple[Kept, int]:
    """Samples of an earlier run, and the newest number that any version was fitted to."""
    seen = max(version.record.trained_through for version in store.versions())
    path = store.folder / SAMPLES
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SAMPLES_BYTES + 1)
        if len(data) > MAX_SAMPLES_BYTES:
            raise ValueError(f"larger than {MAX_SAMPLES_BYTES} bytes")
        kept = Kept.model_validate_json(data)
        numbers = [sample_from(values).number for values in kept.samples]
        if any(after <= before for before, after in itertools.pairwise(numbers)):
            raise ValueError("samples are out of order")
    except FileNotFoundError:
        return Kept(), seen
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used, learning starts anew: %s", path, error)
        return Kept(), seen
    return kept, seen
