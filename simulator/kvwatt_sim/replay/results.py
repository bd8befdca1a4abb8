"""Results as they come, one JSON line each, so that a sweep that was stopped goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from kvwatt_sim.replay.jobs import Row


class Results:
    """Lines of `{"key": ..., "row": ...}` in `path`. A broken line loses only itself.

    Use as a context manager. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.broken = 0
        self.rows: dict[str, Row] = {}

    def __enter__(self) -> Results:
        cut = False
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            cut = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                self._take(line)
        self._file = self._path.open("a", encoding="utf-8")
        if cut:  # a killed run's last line: the next one must not run into it
            self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: str, row: Row) -> None:
        """Keep a result; it is on its way to the disk when this returns."""
        if self._file is None:
            raise RuntimeError("results are not open")
        self._file.write(json.dumps({"key": key, "row": row}, allow_nan=True) + "\n")
        self._file.flush()
        self.rows[key] = row

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        try:
            found = json.loads(line)
            key, row = found["key"], found["row"]
            row["energy_j"] + 0.0
        except (ValueError, KeyError, TypeError, RecursionError):
            self.broken += 1
            return
        self.rows[str(key)] = row
