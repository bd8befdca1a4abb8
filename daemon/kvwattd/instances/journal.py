"""What the scaler intended, on disk, so that a restart goes on where a crash left it."""

from __future__ import annotations

from pathlib import Path


class Journal:
    """One JSON file, replaced as a whole and synchronised before what it announces begins. None: not kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
