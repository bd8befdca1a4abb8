"""One daemon per state folder: a lock that the kernel gives back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = "daemon.lock"


class Locked(Exception):  # noqa: N818 (reads as the state it tells of)
    """Another daemon has the folder, or it cannot be used; the message tells the next step."""


@contextlib.contextmanager
def only_daemon(state_dir: Path) -> Iterator[None]:
    """Hold the state folder, made where it is missing. Raises Locked."""
    path = state_dir / FILE_NAME
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        accepted = "a folder that the daemon's user may write, at daemon.state_dir"
        raise Locked(f"daemon.state_dir {state_dir}: {error.strerror}; accepted: {accepted}") from error
    try:
        _lock(descriptor, state_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, state_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise Locked(
            f"daemon.state_dir {state_dir} is in use by another kvwatt daemon (process {holder}); "
            "stop that one, or give this one a folder, GPUs and a port of its own"
        ) from error
    with contextlib.suppress(OSError):  # the number only informs: a full disk must not keep us from serving
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
