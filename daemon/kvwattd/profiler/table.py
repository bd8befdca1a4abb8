"""The profile table on disk: notes, header, then one row per measurement, each flushed at once."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from kvwatt.profiles import COLUMNS, ProfileRow, format_row


class TableWriter:
    """An interrupted run keeps what it had measured. Raises OSError."""

    def __init__(self, path: Path, notes: Mapping[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        for key, value in notes.items():
            self._file.write(f"# {key}: {' '.join(value.split())}\n")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(COLUMNS)
        self.count = 0

    def write(self, row: ProfileRow) -> None:
        """Append and push to the disk."""
        self._rows.writerow(format_row(row))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.count += 1

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
