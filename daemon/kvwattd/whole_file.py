"""Files that are there whole or not at all, whoever else writes them at the same moment. Blocking."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

PRIVATE = 0o600


def write_whole(path: Path, content: bytes, *, mode: int = PRIVATE, durable: bool = True) -> None:
    """Replace the file. Raises OSError; what was there then still stands, and nothing lies beside it.

    Each writer has a file of its own until it is whole: with one name for all, two that write at once leave
    the end of the longer record behind the shorter one.

    Args:
        path: replaced, not followed, where it is a link.
        content: all of it.
        mode: permissions, whatever the umask.
        durable: on the disk, name included, before this returns.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A name is on the disk with its folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
