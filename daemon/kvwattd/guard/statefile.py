"""Which GPUs have clocks set by us: written before a clock is set, read at the next start. Blocking."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from kvwattd.guard.protocol import MAX_GPUS, MAX_UUID_CHARS

_VERSION = 1
_MAX_BYTES = 64 * 1024
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StateFileError(Exception):
    """The state file cannot be read, locked or written."""


class StateFile:
    """The record, and a lock that keeps a second guard off it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_fd: int | None = None

    def lock(self) -> None:
        """Held until the process ends. Raises StateFileError when another guard has it."""
        lock_path = self._path.with_name(self._path.name + ".lock")
        try:
            fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateFileError(f"state_file = {self._path}: cannot create its lock: {error}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise StateFileError(f"state_file = {self._path}: another guard is running with it") from None
        self._lock_fd = fd

    def load(self) -> frozenset[str]:
        """Empty when there is no record or it is from before the last boot (a boot drops every lock)."""
        try:
            with self._path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise StateFileError(f"state_file = {self._path}: {error}") from None
        boot_id, uuids = self._parse(content)
        current = _boot_id()
        return frozenset() if boot_id and current and boot_id != current else uuids

    def save(self, uuids: Iterable[str]) -> None:
        """Atomic and durable. Raises StateFileError; the old record then still stands."""
        record = {"version": _VERSION, "boot_id": _boot_id(), "gpus": sorted(uuids)}
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            with temporary.open("wb") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            _sync_directory(self._path.parent)
        except OSError as error:
            raise StateFileError(f"state_file = {self._path}: cannot write: {error}") from None

    def _parse(self, content: bytes) -> tuple[str, frozenset[str]]:
        try:
            record = json.loads(content) if len(content) <= _MAX_BYTES else None
        except (ValueError, RecursionError):
            record = None
        gpus = record.get("gpus") if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(gpus, list) or len(gpus) > MAX_GPUS:
            raise StateFileError(
                f"state_file = {self._path}: not a record of the guard (it is replaced at the next write)"
            )
        uuids = frozenset(gpu for gpu in gpus if isinstance(gpu, str) and len(gpu) <= MAX_UUID_CHARS)
        return str(record.get("boot_id", "")), uuids


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # hidden by a sandbox: then the record always counts
        return ""


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
