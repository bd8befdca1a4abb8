"""Writes what the schedulers inside vLLM are told, every few seconds, in active mode only.

A whole new file replaces the old one. A disk that does not take it is a metric and a line in the log; the
schedulers then go by what they see themselves once the last file is too old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from kvwattd.config import Mode
from kvwattd.instance import InstanceRuntime
from kvwattd.scheduler_link.config import SchedulerConfig
from kvwattd.scheduler_link.message import budget_of, lengths_of, promises_of
from kvwattd.vllm_plugin.told import VERSION, Message, Told
from kvwattd.whole_file import write_whole

log = logging.getLogger(__name__)

EVERY_S = 2.0
FILE_MODE = 0o644  # lengths and limits, nothing of a request


class SchedulerLink:
    """`runs`: the instances as they are now. `run` goes on until it is cancelled."""

    def __init__(
        self,
        config: SchedulerConfig,
        runs: Callable[[], Iterable[InstanceRuntime]],
        now: Callable[[], float],
        mode: Callable[[], Mode],
    ) -> None:
        self._config, self._runs, self._now, self._mode = config, runs, now, mode
        self.errors = 0
        self._failing = False

    async def run(self) -> None:
        """Write, and take the file away at the end, so that nobody goes by an old one."""
        path = self._config.file
        if path is None:
            return
        try:
            while True:
                await self._once(path)
                await asyncio.sleep(EVERY_S)
        finally:
            with suppress(OSError):
                path.unlink()

    async def _once(self, path: Path) -> None:
        try:
            if self._mode() is Mode.ACTIVE:
                content = msgspec.json.encode(self.message())
                await asyncio.to_thread(write_whole, path, content, mode=FILE_MODE, durable=False)
            else:
                await asyncio.to_thread(path.unlink, missing_ok=True)
        except Exception as error:  # whatever it is, vLLM serves on and this is tried again
            self.errors += 1
            if not self._failing:
                log.warning("scheduler: %s cannot be written: %s", path, error)
            self._failing = True
        else:
            self._failing = False

    def message(self) -> Message:
        """For all instances whose engine is known."""
        told = [self._told(run) for run in self._runs()]
        return Message(VERSION, self._now(), [item for item in told if item is not None])

    def _told(self, run: InstanceRuntime) -> Told | None:
        page = run.observation.snapshot
        model = run.config.model_name or (page.model_name if page is not None else None)
        if model is None or page is None:
            return None
        engine = run.config.engine or page.engine
        config, compiled, shape = self._config, run.model.compiled, run.shape()
        budget = promises = None
        if compiled is not None and shape is not None:
            traffic = run.observation.traffic(run.slo) if config.kv_budget else None
            if traffic is not None:
                clock_mhz = run.last.clock_mhz if run.last is not None else None
                budget = budget_of(traffic, compiled, clock_mhz, shape, run.slo)
            if config.admission == "throttllem":
                promises = promises_of(compiled, shape, run.slo)
        return Told(
            model=model,
            instance=run.name,
            engine=int(engine) if engine.isdecimal() else None,
            lengths=lengths_of(run.observation.estimator.by_class),
            budget_blocks=budget.in_use_blocks if budget is not None else None,
            max_seqs=budget.max_seqs if budget is not None else None,
            order=config.order,
            age_s=config.age_s,
            promises=promises,
        )
