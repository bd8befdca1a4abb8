"""Refits the energy model online, instance by instance; what is learned survives a restart.

    every refit_s:  windows -> STATE/energy/NAME/job/job.json -> worker -> result.json -> kept.json

A worker that fails, hangs or outgrows its limits costs a log line: the model that serves goes on serving.
Nothing here decides a clock: the model tells what energy serving should take, its accuracy what it is worth.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kvwatt.energy_artifact import from_text
from kvwattd.api.schemas import EnergyModelView, RefitOutcome
from kvwattd.energy_learning.job import JOB, MODEL, RESULT, Job, Kept, Result, Row
from kvwattd.energy_learning.learner import EnergyLearner
from kvwattd.instance import InstanceRuntime
from kvwattd.model_versions import VersionStore
from kvwattd.refit_worker import Shape
from kvwattd.refits import run_worker
from kvwattd.whole_file import write_whole

log = logging.getLogger(__name__)

KEPT = "kept.json"
MAX_KEPT_BYTES = 1 << 26
WORKER = "kvwattd.energy_learning.worker"


@dataclass
class Learned:
    """What is known of one instance's energy model."""

    kept: Kept = field(default_factory=Kept)
    last: RefitOutcome | None = None
    reason: str = ""
    finished_unix_s: float | None = None
    outcomes: Counter[RefitOutcome] = field(default_factory=Counter)


class EnergyRefits:
    """All energy models of the daemon, one worker at a time. `period_s` 0: never."""

    def __init__(
        self,
        period_s: float,
        folder: Path,
        stores: Mapping[str, VersionStore],
        learners: Mapping[str, EnergyLearner],
    ) -> None:
        self._period_s, self._folder = period_s, folder
        self._stores, self._learners = stores, learners
        self.learned: dict[str, Learned] = {}

    async def run(self, runs: Mapping[str, InstanceRuntime]) -> None:
        """Take up what earlier runs learned, then refit at every period until cancelled."""
        if self._period_s <= 0:
            return
        for name in list(self._learners):
            await self.admit(name)
        await asyncio.sleep(self._period_s / 2)  # the step models' refits are due at the other half
        while True:
            for run in list(runs.values()):
                if run.model.compiled is not None and runs.get(run.name) is run:
                    await self.refit(run)
            await asyncio.sleep(self._period_s)

    async def admit(self, name: str) -> None:
        """An instance, with what was learned of it before."""
        kept = await asyncio.to_thread(restored, self._folder / name / KEPT)
        self.learned[name] = Learned(kept)
        ring = self._learners[name].ring
        for row in kept.windows:
            ring.restore(row.counted())

    def forget(self, name: str) -> None:
        """An instance that is given up; its files stay."""
        self.learned.pop(name, None)

    def view(self, name: str) -> EnergyModelView:
        """What REST shows."""
        learned = self.learned.get(name, Learned())
        return EnergyModelView(
            windows=len(self._learners[name].ring),
            windows_dropped_total=self._learners[name].dropped,
            learned=bool(learned.kept.model),
            accuracy_ratio=learned.kept.accuracy,
            importance=learned.kept.importance,
            last=learned.last,
            reason=learned.reason,
            finished_unix_s=learned.finished_unix_s,
            outcomes_total=dict(learned.outcomes),
        )

    async def refit(self, run: InstanceRuntime) -> None:
        """One refit of one instance, whatever comes of it."""
        learned = self.learned.setdefault(run.name, Learned())
        try:
            result = await self._refit(run, learned)
        except (OSError, ValueError) as error:
            result = Result(outcome="failed", reason=str(error))
        news = (learned.last, learned.reason) != (result.outcome, result.reason)
        learned.last, learned.reason = result.outcome, result.reason
        learned.finished_unix_s = time.time()
        learned.outcomes[result.outcome] += 1
        level = logging.WARNING if result.outcome == "failed" and news else logging.INFO
        log.log(level, "instance %s: energy model %s: %s", run.name, result.outcome, result.reason)

    async def _refit(self, run: InstanceRuntime, learned: Learned) -> Result:
        shape, compiled = run.shape(), run.model.compiled
        if shape is None or compiled is None:
            return Result(outcome="failed", reason="no model serves")
        windows = [Row.of(window) for window in self._learners[run.name].ring.windows()]
        kept = learned.kept.model_copy(update={"windows": windows})
        store, folder = self._stores[run.name], self._folder / run.name
        served = await asyncio.to_thread(store.serving)
        job = Job(
            step_model=served.path,
            clocks_mhz=compiled.clocks_mhz,
            shape=Shape(**asdict(shape)),
            kept=kept,
        )
        await asyncio.to_thread(_write_job, folder / "job", job)
        failure = await run_worker(folder / "job", module=WORKER)
        result, learned.kept = await asyncio.to_thread(_take_over, folder, failure, kept)
        return result


def _write_job(folder: Path, job: Job) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / JOB).write_text(job.model_dump_json(), encoding="utf-8")


def _take_over(folder: Path, failure: str | None, kept: Kept) -> tuple[Result, Kept]:
    """The result, and what is kept from now on, written so that a crash leaves the old or the new."""
    if failure is not None:
        return Result(outcome="failed", reason=failure), kept
    result = Result.model_validate_json((folder / "job" / RESULT).read_bytes())
    if result.outcome != "failed":
        told: dict[str, object] = {
            "scored_through": result.scored_through,
            "seen_through": result.trained_through,
        }
        if result.accuracy is not None:
            told |= {"accuracy": result.accuracy, "importance": result.importance}
        if result.outcome == "promoted":
            told |= {"model": (folder / "job" / MODEL).read_text(encoding="utf-8")}
        kept = kept.model_copy(update=told)
    write_whole(folder / KEPT, kept.model_dump_json().encode())
    return result, kept


def restored(path: Path) -> Kept:
    """What an earlier run kept; nothing, and a log line, where it cannot be used."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEPT_BYTES + 1)
        if len(data) > MAX_KEPT_BYTES:
            raise ValueError(f"larger than {MAX_KEPT_BYTES} bytes")
        kept = Kept.model_validate_json(data)
        numbers = [row.counted().number for row in kept.windows]
        if any(after <= before for before, after in itertools.pairwise(numbers)):
            raise ValueError("windows are out of order")
        if kept.model:
            from_text(kept.model)
    except FileNotFoundError:
        return Kept()
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used, the energy model is learned anew: %s", path, error)
        return Kept()
    return kept
