"""Where the loop meets the ledger: hand it an instance after each page and each GPU reading."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from kvwattd.config import Mode
from kvwattd.instance import InstanceRuntime
from kvwattd.ledger.compaction import DAY_MS, Keep
from kvwattd.ledger.config import HoldoutConfig, LedgerConfig
from kvwattd.ledger.holding import HoldoutRun
from kvwattd.ledger.proof import seed_of
from kvwattd.ledger.taking import Taking
from kvwattd.ledger.writer import LedgerWriter, WriterStatus
from kvwattd.version import kvwatt_version

log = logging.getLogger(__name__)

FILE_NAME = "ledger.db"


class Ledger:
    """Keeps account of every instance it is handed, and draws their holdout windows. Never waits for a disk.

    Without a ledger nothing is held at default either: what would be measured could not be kept.
    """

    def __init__(
        self,
        config: LedgerConfig,
        holdout: HoldoutConfig,
        state_dir: Path,
        now: Callable[[], float],
        mode: Callable[[], Mode],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._params = config, holdout.params()
        self._now, self._mode, self._wall = now, mode, wall
        self._run_id = round(wall() * 1e3)
        self._seed = os.urandom(16)
        self._takings: dict[str, Taking] = {}
        self._holdouts: dict[str, HoldoutRun] = {}
        self.mistakes = 0
        self._writer: LedgerWriter | None = None
        if config.enabled:
            told = json.dumps(asdict(self._params), sort_keys=True)
            began = (self._run_id, kvwatt_version(), self._seed.hex(), told)
            self._writer = LedgerWriter(state_dir / FILE_NAME, _keep(config), began, wall)

    def start(self) -> None:
        if self._writer is not None:
            self._writer.start()

    def close(self) -> None:
        """Close every interval and write what is queued, for a few seconds at most."""
        if self._writer is None:
            return
        for taking in self._takings.values():
            taking.close(self._wall())
        self._writer.close()

    @property
    def status(self) -> WriterStatus | None:
        return self._writer.status if self._writer is not None else None

    @property
    def waiting(self) -> int:
        """Intervals closed and not on the disk yet."""
        return self._writer.waiting if self._writer is not None else 0

    def on_page(self, run: InstanceRuntime) -> None:
        """After the instance took in a page."""
        with self._not_fatal(run):
            taking = self._taking(run)
            if taking is not None:
                taking.on_page()

    def on_gpu(self, run: InstanceRuntime) -> None:
        """After the instance took in a reading of its GPUs."""
        with self._not_fatal(run):
            taking = self._taking(run)
            if taking is not None and run.gpu_fault is None:
                taking.on_gpu(self._now(), self._wall(), self._mode())

    @contextlib.contextmanager
    def _not_fatal(self, run: InstanceRuntime) -> Iterator[None]:
        """Accounts must never end serving: a mistake in them loses the open interval, and is told."""
        try:
            yield
        except Exception:
            self.mistakes += 1
            self._takings.pop(run.name, None)
            if self.mistakes == 1:
                log.exception("ledger: instance %s: the open interval is lost", run.name)

    def forget(self, name: str) -> None:
        """An instance that was given up: its interval ends here."""
        taking = self._takings.pop(name, None)
        if taking is not None:
            taking.close(self._wall())

    def _taking(self, run: InstanceRuntime) -> Taking | None:
        if self._writer is None:
            return None
        taking = self._takings.get(run.name)
        if taking is None or taking.run is not run:
            self.forget(run.name)
            run.holdout = self._holdout(run.name)
            taking = Taking(run, self._run_id, self._config.interval_s, self._writer.put)
            self._takings[run.name] = taking
        return taking

    def _holdout(self, name: str) -> HoldoutRun:
        """One for each name as long as the daemon runs: an instance that comes again draws on."""
        if name not in self._holdouts:
            self._holdouts[name] = HoldoutRun(self._params, seed_of(self._seed, name), name)
        return self._holdouts[name]


def _keep(config: LedgerConfig) -> Keep:
    return Keep(
        intervals_ms=config.minutes_days * DAY_MS,
        hours_ms=config.hours_days * DAY_MS,
        days_ms=config.days_days * DAY_MS,
        max_bytes=config.max_mb * 1_000_000,
    )
