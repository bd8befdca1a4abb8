"""What was set over REST and outlives a restart: one JSON file in the state folder.

Precedence: set over REST, else the environment, else the configuration file, else the default. A file that
cannot be understood sets nothing, but holds the mode at shadow at most until somebody sets it anew: an
operator may have switched control off, and that must not be forgotten. A file that cannot be written is an
alarm and nothing more: what was set is in force until the restart. Overrides of clocks are never kept.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kvwattd.api.schemas import ModeSetView, SettingsView, SloSetView
from kvwattd.config import Config, Mode
from kvwattd.whole_file import write_whole

log = logging.getLogger(__name__)

FILE_NAME = "settings.json"
MAX_BYTES = 1 << 20
UNREADABLE = "unreadable settings"


class Settings(BaseModel):
    """As stored; replaced as a whole by each change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    mode: ModeSetView | None = None
    slos: dict[str, SloSetView] = {}

    def mode_over(self, config: Config) -> Mode:
        """The mode in force."""
        return self.mode.mode if self.mode is not None else config.daemon.mode

    def without_slos(self, names: set[str]) -> Settings:
        return self.model_copy(update={"slos": {n: s for n, s in self.slos.items() if n not in names}})


class SettingsFile:
    """The settings in force and their file. `path` None: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._writing = asyncio.Lock()
        self.current = Settings()
        self.errors = 0
        self.last_error: str | None = None

    def load(self, config: Config, unix_s: float) -> None:
        """Take up what an earlier run kept. Reads the disk: before the loop runs."""
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            found = Settings.model_validate_json(data)
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            self._alarm(f"{self._path} cannot be used: {_told(error)}; PUT or DELETE /api/v1/mode renews it")
            if config.daemon.mode is Mode.ACTIVE:
                held = ModeSetView(by=UNREADABLE, unix_s=unix_s, mode=Mode.SHADOW)
                self.current = Settings(mode=held)
            return
        unknown = set(found.slos) - {item.name for item in config.instances}
        for name in sorted(unknown):
            log.warning("settings: promises of %r are dropped: no such instance", name)
        self.current = found.without_slos(unknown)

    async def keep(self, settings: Settings) -> None:
        """Put settings in force and write them down, in a thread. Never raises."""
        self.current = settings
        if self._path is None:
            return
        async with self._writing:
            try:
                content = self.current.model_dump_json(indent=1).encode()
                await asyncio.to_thread(write_whole, self._path, content)
                self.last_error = None
            except OSError as error:
                self._alarm(f"{self._path} cannot be written: {error.strerror}; a restart forgets the change")

    def view(self) -> SettingsView:
        return SettingsView(
            mode=self.current.mode,
            slos=self.current.slos,
            errors_total=self.errors,
            last_error=self.last_error,
        )

    def _alarm(self, told: str) -> None:
        self.errors += 1
        self.last_error = told
        log.error("settings: %s", told)


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the file'}: {first['msg']}"
    return str(error)
