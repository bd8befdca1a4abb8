"""The polls: a task per instance that scrapes its metrics page, and what is learned from each page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from kvwatt.state import EngineSnapshot
from kvwattd.energy_learning.learner import EnergyLearner
from kvwattd.instance import InstanceRuntime
from kvwattd.learning import Learner, SampleLog
from kvwattd.ledger.day import Ledger
from kvwattd.recording.day import Recording
from kvwattd.regime import Regime
from kvwattd.telemetry.poller import Poller, TelemetryError


class Polling:
    """Polls each instance that it was told to, once `begin` was called."""

    def __init__(
        self,
        now: Callable[[], float],
        learners: Mapping[str, Learner],
        energy: Mapping[str, EnergyLearner],
        samples: SampleLog,
        recording: Recording,
        ledger: Ledger,
    ) -> None:
        self._now = now
        self._learners = learners
        self._energy = energy
        self._samples = samples
        self._recording = recording
        self._ledger = ledger
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, group: asyncio.TaskGroup) -> None:
        """From now on polls are tasks of this group."""
        self._group = group

    def end(self) -> None:
        """Stop every poll."""
        self._group = None
        for name in list(self._tasks):
            self.stop(name)

    def anew(self, run: InstanceRuntime) -> None:
        """Start polling an instance, or go on with the periods it has now."""
        self.stop(run.name)
        if self._group is not None:
            self._tasks[run.name] = self._group.create_task(self._polls(run), name=f"poll {run.name}")

    def stop(self, name: str) -> None:
        """Poll this instance no more."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def _polls(self, run: InstanceRuntime) -> None:
        c = run.config
        poller = Poller(c.url, c.scrape_deadline_s, engine=c.engine, model_name=c.model_name)
        due_s = self._now()
        try:
            while True:
                if run.resting is None:
                    await self._poll(run, poller)
                # Absolute deadlines; polls that are already late are left out.
                due_s = max(due_s + c.poll_s, self._now())
                await asyncio.sleep(due_s - self._now())
        finally:
            await poller.close()

    async def _poll(self, run: InstanceRuntime, poller: Poller) -> None:
        try:
            snapshot = await poller.poll(self._now)
        except TelemetryError as error:
            run.observation.on_error(error.cause, error.detail)
            return
        self.on_page(run, snapshot, poller.layout)
        if run.regime is Regime.LEARNING:
            self._samples.observe(run.name, run.observation.interval, run.samples, run.config.tp)
            await self._samples.flush()

    def on_page(self, run: InstanceRuntime, snapshot: EngineSnapshot, layout: str | None) -> None:
        """Fold in an accepted page: what it shows, what it teaches."""
        run.on_page(snapshot, layout)
        self._recording.on_page(run)
        self._ledger.on_page(run)
        cap_w = sum(info.power_limit_w for info in run.gpus) if run.gpus else None
        c = run.config
        self._energy[run.name].on_page(snapshot, c.tp, c.max_num_batched_tokens, cap_w)
        steady = self._now() - run.applied.since_s > _steady_window_s(run)
        if run.model.compiled is not None:
            run.observation.calibrate(run.model.compiled, run.samples, steady)
        self._learners[run.name].observe(
            snapshot.model_name,
            run.observation.interval,
            run.samples,
            run.observation.chunk_tokens(),
            steady and run.regime is not Regime.FAILSAFE,
        )


def _steady_window_s(run: InstanceRuntime) -> float:
    """A clock must have been in force over the whole interval that is compared with the model."""
    return run.config.poll_s + 0.2
