"""Takes up a changed configuration while running: validated first as a whole; an error keeps the old one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from kvwattd.api.schemas import ConfigStateView, ReloadView
from kvwattd.config import ConfigError, load_config
from kvwattd.config_change import ConfigChange, change_between
from kvwattd.config_errors import ConfigProblem
from kvwattd.logs import configure_logging
from kvwattd.loop import Daemon
from kvwattd.telemetry.gpu import GpuReader, GpuUnavailable

log = logging.getLogger(__name__)

LOOKUP_DEADLINE_S = 1.0


class Reloader:
    """Reads the file again on request, one request after the other."""

    def __init__(
        self,
        path: Path,
        daemon: Daemon,
        unix_s: Callable[[], float] = time.time,
        look_up: Callable[[Sequence[str]], Awaitable[None]] | None = None,
    ) -> None:
        self._path = path
        self._look_up = look_up or look_up_gpus
        self._daemon = daemon
        self._unix_s = unix_s
        self._busy = asyncio.Lock()
        self._loaded_unix_s = unix_s()
        self._last: ReloadView | None = None
        self._reloads = self._failures = 0

    def view(self) -> ConfigStateView:
        return ConfigStateView(
            reloads_total=self._reloads,
            failures_total=self._failures,
            loaded_unix_s=self._loaded_unix_s,
            last=self._last,
        )

    async def reload(self) -> ReloadView:
        """Validate the file and apply it. Raises ConfigError; then nothing has changed."""
        async with self._busy:
            try:
                change = await self._validated()
            except ConfigError as error:
                self._refused(error)
                raise
            await apply(self._daemon, change)
            return self._done(change)

    async def _validated(self) -> ConfigChange:
        wanted = await asyncio.to_thread(load_config, self._path)
        change = change_between(self._daemon.config, wanted)
        known = {gpu for item in self._daemon.config.instances for gpu in item.gpus}
        new = [gpu for item in change.admitted for gpu in item.gpus if gpu not in known]
        if new:
            await self._look_up(new)
        return change

    def _refused(self, error: ConfigError) -> None:
        self._reloads += 1
        self._failures += 1
        errors = [str(problem) for problem in error.problems]
        self._last = ReloadView(ok=False, unix_s=self._unix_s(), errors=errors)
        log.error("configuration: %s refused, the old one stays in force: %s", self._path, error)

    def _done(self, change: ConfigChange) -> ReloadView:
        settings = self._daemon.settings.current
        overridden = ["daemon.mode"] if settings.mode is not None else []
        overridden += [f"instance[{name}].slo" for name in settings.slos]
        self._reloads += 1
        self._loaded_unix_s = self._unix_s()
        self._last = ReloadView(
            ok=True,
            unix_s=self._loaded_unix_s,
            applied=list(change.applied),
            restart=list(change.restart),
            overridden=overridden,
        )
        log.info(
            "configuration: %s in force; changed: %s", self._path, ", ".join(change.applied) or "nothing"
        )
        if change.restart:
            log.warning("configuration: in force only after a restart: %s", ", ".join(change.restart))
        if overridden:
            log.warning(
                "configuration: set over REST, which stands over the file: %s; DELETE /api/v1/mode or "
                "/api/v1/slos/INSTANCE follows the file again",
                ", ".join(overridden),
            )
        return self._last


async def apply(daemon: Daemon, change: ConfigChange) -> None:
    """Put a validated change in force; GPUs that are given up are at driver default first."""
    before = daemon.config
    for name in change.dismissed:
        await daemon.dismiss(name)
    clocks_before = {name: daemon.permitted_clocks(run) for name, run in daemon.runs.items()}
    daemon.config = change.config
    own = change.config.daemon
    if (own.log_level, own.log_format) != (before.daemon.log_level, before.daemon.log_format):
        configure_logging(own.log_level, own.log_format)
    if daemon.guard_child is not None:
        await daemon.guard_child.configure(change.config)
    settings = daemon.settings.current
    gone = set(settings.slos) - {item.name for item in change.config.instances}
    if gone:
        await daemon.settings.keep(settings.without_slos(gone))
    daemon.set_mode(daemon.settings.current.mode_over(change.config))
    if daemon.pool is not None:
        daemon.pool.follow(change.config)
    for item in change.kept:
        _go_on(daemon, item.name, change, clocks_before[item.name])
    for item in change.admitted:
        await daemon.admit(item)


def _go_on(daemon: Daemon, name: str, change: ConfigChange, clocks_before: tuple[int, ...]) -> None:
    """New promises, policy, periods and bounds for an instance that stays."""
    run = daemon.runs[name]
    before = run.config
    run.config = next(item for item in change.config.instances if item.name == name)
    run.slo, run.params = daemon.slo_for(run.config), daemon.params_for(run.config)
    run.promises.over(change.config.policy.attainment_window_s)
    if (before.poll_s, before.scrape_deadline_s) != (run.config.poll_s, run.config.scrape_deadline_s):
        run.observation.on_period(run.config.poll_s)
        daemon.polling.anew(run)
    permitted = daemon.permitted_clocks(run)
    if permitted == clocks_before:
        return
    daemon.models.invalidate(run, "the bounds of the clocks changed: the model is compiled anew")
    if run.override is not None and run.override.clock_mhz not in (None, *permitted):
        log.warning("instance %s: override ended: %s MHz is out of bounds", name, run.override.clock_mhz)
        run.override = None


async def look_up_gpus(gpus: Sequence[str]) -> None:
    """A GPU that does not exist must not take the other instances down. Raises ConfigError."""
    reader = GpuReader(gpus, LOOKUP_DEADLINE_S)
    try:
        await reader.start()
    except GpuUnavailable as error:
        told = f"GPUs of this machine: {error}"
        raise ConfigError([ConfigProblem("instance.gpus", list(gpus), told)]) from error
    finally:
        reader.close()
