"""Who changed what, when, from what to what: one JSON object per line, appended, and in the log too.

Refused attempts are recorded as well. The file is opened for each record, so that it may be rotated by
renaming; records are written by a thread. A record that cannot be written is counted and still logged, and
the change goes on: the service comes first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from kvwattd.api.schemas import AuditView

log = logging.getLogger(__name__)

TAIL_BYTES = 1 << 20
SHOWN_CHARACTERS = 300


class AuditLog:
    """The audit file. `path` None: the log alone."""

    def __init__(self, path: Path | None, unix_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._unix_s = unix_s
        self._writing = asyncio.Lock()
        self.records = 0
        self.errors = 0
        self.last_error: str | None = None

    async def record(
        self,
        who: str,
        client: str,
        action: str,
        status: int,
        before: object = None,
        after: object = None,
        detail: str | None = None,
    ) -> None:
        """Write down one change, or an attempt at one. `status` as in HTTP: below 400 it was done."""
        unix_s = self._unix_s()
        entry = AuditView(
            time=datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds"),
            unix_s=unix_s,
            who=who,
            client=client,
            action=action[:SHOWN_CHARACTERS],
            outcome="done" if status < 400 else "refused",
            status=status,
            before=before,
            after=after,
            detail=detail[:SHOWN_CHARACTERS] if detail else None,
        )
        line = entry.model_dump_json(exclude_none=True)
        log.info("%s", line)
        self.records += 1
        if self._path is None:
            return
        async with self._writing:
            try:
                await asyncio.to_thread(_append, self._path, line.encode() + b"\n")
                self.last_error = None
            except OSError as error:
                self.errors += 1
                self.last_error = f"{self._path}: {error.strerror}"
                log.error("audit log cannot be written, the line above is its only record: %s", error)

    async def newest(self, limit: int) -> list[AuditView]:
        """The newest records, newest first."""
        if self._path is None:
            return []
        return await asyncio.to_thread(_newest, self._path, limit)


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # the record before was cut off: a disk was full
        if os.write(descriptor, line) != len(line):
            raise OSError(28, "only part of a record was written")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest(path: Path, limit: int) -> list[AuditView]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return []
    found: list[AuditView] = []
    for line in reversed(lines if size <= TAIL_BYTES else lines[1:]):
        try:
            found.append(AuditView.model_validate_json(line))
        except ValidationError:
            continue
        if len(found) == limit:
            break
    return found
