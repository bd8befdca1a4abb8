"""What the scaler intended, on disk, so that a restart goes on where a crash left it.

Nothing's safety hangs on it: without it a restart finds out what runs and takes what serves into service. It
is there so that a drain goes on as a drain, with the deadline it had, and that a start that does not come is
cleaned up. So a file that cannot be read or written is an alarm and no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kvwattd.instances.scaler_record import Goal
from kvwattd.whole_file import write_whole

log = logging.getLogger(__name__)

FILE_NAME = "instances.json"
MAX_BYTES = 1 << 20


class Entry(BaseModel):
    """One member on its way somewhere, or given up for a while. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    goal: Goal
    since_unix_s: float
    origin: Literal["stopped", "asleep"] | None = None
    served: bool = False
    ending: bool = False
    force: bool = False
    failed_unix_s: float | None = None


class Entries(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    members: dict[str, Entry] = {}


class Journal:
    """One JSON file, replaced as a whole and synchronised. `path` None: nothing is kept.

    `write` waits at most `timeout_s` for the disk: a disk that hangs must not stop scaling.
    """

    def __init__(self, path: Path | None, timeout_s: float = 2.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        self._kept = Entries()
        self.errors = 0
        self.last_error: str | None = None

    async def read(self) -> Mapping[str, Entry]:
        """What an earlier run intended; empty when there is no file or it cannot be used."""
        if self._path is None:
            return {}
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await asyncio.to_thread(_read, self._path)
            self._kept = Entries.model_validate_json(data)
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:  # TimeoutError is an OSError
            self._alarm(
                f"{self._path} cannot be used ({type(error).__name__}): what runs is adopted as it is"
            )
        return self._kept.members

    async def write(self, members: Callable[[], Mapping[str, Entry]]) -> None:
        """Make what `members` gives at the time of writing durable, or say that it is not. Never raises."""
        if self._path is None:
            return
        try:
            async with asyncio.timeout(self._timeout_s), self._lock:
                if self._writing is not None:
                    await asyncio.shield(self._writing)  # one that took longer than its time
                await self._replace(self._path, Entries(members=dict(members())))
        except OSError as error:
            told = error.strerror or type(error).__name__
            self._alarm(f"{self._path} cannot be written ({told}): a restart forgets what is under way")

    async def _replace(self, path: Path, wanted: Entries) -> None:
        if wanted == self._kept and self.last_error is None:
            return
        text = wanted.model_dump_json().encode()
        self._writing = asyncio.create_task(asyncio.to_thread(write_whole, path, text))
        try:
            await asyncio.shield(self._writing)
            self._kept, self.last_error = wanted, None
        finally:
            if self._writing.done():
                self._writing = None

    def _alarm(self, told: str) -> None:
        self.errors += 1
        if told != self.last_error:
            log.error("instances: %s", told)
        self.last_error = told


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES)
