"""One writer per GPU on this machine: an flock on a file per UUID, held until the guard ends. Blocking.

The kernel drops the lock with the process, whatever ends it. The files stay: removing one would let two
guards hold locks on two files of the same name.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path


class LockHeldError(Exception):
    """Another process controls a GPU, or the lock cannot be made."""


def default_folder() -> Path:
    """`$KVWATT_LOCK_DIR`, else /run/kvwatt/locks for root, else a folder of this user's own.

    Only root can set clocks on real GPUs; the variable is for simulated ones, which share
    UUIDs but not files.
    """
    chosen = os.environ.get("KVWATT_LOCK_DIR", "")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/kvwatt/locks")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"kvwatt-locks-{os.geteuid()}"


class GpuLocks:
    """All GPUs or none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[int] = []

    def take(self, uuids: Sequence[str]) -> None:
        """Raises LockHeldError with the GPU and the process that has it."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for uuid in uuids:
                self._held.append(self._lock(uuid))
        except OSError as error:
            self.release()
            raise LockHeldError(f"lock_dir = {self._folder}: cannot lock: {error}") from None
        except LockHeldError:
            self.release()
            raise

    def release(self) -> None:
        """May be repeated."""
        while self._held:
            os.close(self._held.pop())

    def _lock(self, uuid: str) -> int:
        path = self._folder / f"{uuid}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise LockHeldError(
                f"GPU {uuid}: another guard controls it (pid {holder}, lock {path}); one writer per GPU"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd
