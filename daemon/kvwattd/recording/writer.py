"""Writes lines to a folder from a thread of its own, so that a slow disk never delays a decision.

What comes faster than the disk takes is dropped and counted. The folder never holds more than
`max_bytes`: the oldest days go first, and a day that is too large by itself ends early.
"""

from __future__ import annotations

import logging
from itertools import accumulate
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread

from kvwattd.recording.lines import FILE_NAME, Line, encode, file_name, time_of

log = logging.getLogger(__name__)

QUEUE_LINES = 10_000
BATCH_LINES = 1000
FLUSH_S = 1.0


class Recorder:
    """Call `start`, `put` as lines come, and `close`."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._queue: Queue[Line | None] = Queue(QUEUE_LINES)
        self._thread = Thread(target=self._run, name="recorder", daemon=True)
        self._fault: str | None = None
        self.written = 0
        self.dropped = 0

    @property
    def fault(self) -> str | None:
        """Why nothing is written, None while all is well."""
        return self._fault

    def start(self) -> None:
        """Make the folder and begin. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def put(self, line: Line) -> None:
        """Never waits: a line for which there is no room is dropped."""
        try:
            self._queue.put_nowait(line)
        except Full:
            self.dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most `timeout_s`."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._batch()
            if not batch:
                continue
            try:
                self._write(batch)
            except OSError as error:
                self.dropped += len(batch)
                self._tell(f"{error.filename or self._folder}: {error.strerror or error}")

    def _batch(self) -> tuple[list[Line], bool]:
        """What came in the last second, and whether it is the last."""
        batch: list[Line] = []
        while len(batch) < BATCH_LINES:
            try:
                line = self._queue.get(timeout=FLUSH_S)
            except Empty:
                break
            if line is None:
                return batch, True
            batch.append(line)
        return batch, False

    def _write(self, batch: list[Line]) -> None:
        by_day: dict[str, list[bytes]] = {}
        for line in batch:
            by_day.setdefault(file_name(time_of(line)), []).append(encode(line))
        for name, lines in by_day.items():
            fitting = self._fitting(lines, self._room(name, sum(map(len, lines))))
            with (self._folder / name).open("ab") as file:
                file.write(b"".join(fitting))
            self.written += len(fitting)
            self.dropped += len(lines) - len(fitting)
            whole = len(fitting) == len(lines)
            self._tell(None if whole else f"{self._folder}: {name} alone fills its {self._max_bytes} bytes")

    def _room(self, name: str, wanted: int) -> int:
        """Bytes that may be added to `name`, with the oldest other days deleted as far as needed."""
        days = {p: p.stat().st_size for p in self._folder.iterdir() if FILE_NAME.fullmatch(p.name)}
        oldest_first = sorted(path for path in days if path.name != name)
        while oldest_first and sum(days.values()) + wanted > self._max_bytes:
            path = oldest_first.pop(0)
            path.unlink()
            del days[path]
        return self._max_bytes - sum(days.values())

    @staticmethod
    def _fitting(lines: list[bytes], room: int) -> list[bytes]:
        ends = accumulate(map(len, lines))
        return [line for line, end in zip(lines, ends, strict=True) if end <= room]

    def _tell(self, fault: str | None) -> None:
        """Log when it begins and when it ends, not at every batch."""
        if fault is not None and self._fault is None:
            log.warning("recording stopped: %s", fault)
        elif fault is None and self._fault is not None:
            log.warning("recording goes on; %d lines were lost so far", self.dropped)
        self._fault = fault
