"""The thread that does all I/O of the ledger. The loop hands over closed intervals and never waits.

What cannot be written now (a full disk, a folder that is gone) is kept, up to a bound, and written when that
is possible; beyond the bound the oldest is dropped and counted. Nothing here ends the daemon.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kvwattd.ledger.compaction import DAY_MS, Keep, compact
from kvwattd.ledger.entry import Entry
from kvwattd.ledger.proof import Agreement, agreements
from kvwattd.ledger.reading import summed
from kvwattd.ledger.schema import NewerFileError, Run
from kvwattd.ledger.store import Store, damaged

log = logging.getLogger(__name__)

QUEUE_ENTRIES = 10_000
BATCH_ENTRIES = 500
RETRY_S = 5.0
UPKEEP_S = 3600.0
CHECK_S = 86_400.0  # the whole file is read again, for damage that nothing else would come across
AGREEMENT_DAYS = 7


@dataclass
class WriterStatus:
    """Read by the loop at any time. `fault`: why nothing is written now."""

    fault: str | None = None
    faults: int = 0
    written: int = 0
    dropped: int = 0
    set_aside: int = 0
    salvaged: int = 0
    bytes: int = 0
    commit_s: float = 0.0  # the longest so far
    agreements: tuple[Agreement, ...] = ()


class LedgerWriter:
    """Call `start`, `put` as intervals close, and `close`."""

    def __init__(self, path: Path, keep: Keep, run: Run, wall: Callable[[], float] = time.time) -> None:
        self._store = Store(path, wall)
        self._keep, self._wall = keep, wall
        self._began = run
        self._waiting: deque[Entry] = deque()
        self._wake = threading.Condition()
        self._ending = False
        self._begun = False
        self._upkeep_due_s = self._retry_due_s = 0.0
        self._check_due_s = time.monotonic() + CHECK_S
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self.status = WriterStatus()

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Intervals that are not on the disk yet."""
        return len(self._waiting)

    def put(self, entry: Entry) -> None:
        """Never waits for the disk."""
        with self._wake:
            if len(self._waiting) >= QUEUE_ENTRIES:
                self._waiting.popleft()
                self.status.dropped += 1
            self._waiting.append(entry)
            self._wake.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, for at most `timeout_s`."""
        if not self._thread.is_alive():
            return
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        ending = False
        while not ending or (self._waiting and self.status.fault is None):
            with self._wake:
                if not self._ending and not self._pressing():
                    self._wake.wait(self._idle_s())
                ending = self._ending
            if ending or self._pressing() or time.monotonic() >= self._upkeep_due_s:
                self._try()
        try:
            self._store.close()
        except (sqlite3.Error, OSError) as error:
            log.warning("ledger: closing it: %s", error)

    def _pressing(self) -> bool:
        """Something waits, and is worth a try now."""
        return bool(self._waiting) and time.monotonic() >= self._retry_due_s

    def _idle_s(self) -> float:
        due_s = self._retry_due_s if self._waiting else self._upkeep_due_s
        return max(due_s - time.monotonic(), 0.001)

    def _try(self) -> None:
        """Whatever fails is told once, and tried again later."""
        try:
            self._step()
        except sqlite3.DatabaseError as error:
            if damaged(error):
                self._replace(str(error))
            else:
                self._fail(f"{error}")
        except (OSError, NewerFileError) as error:
            self._fail(str(error))
        except Exception as error:  # a mistake of ours ends neither the thread nor what waits
            self._fail(f"{type(error).__name__}: {error}")
        else:
            self._well()

    def _step(self) -> None:
        self._store.open()
        self._count()
        if not self._begun:
            self._store.begin_run(self._began)
            self._begun = True
        self._flush()
        if time.monotonic() >= self._upkeep_due_s:
            self._upkeep()

    def _flush(self) -> None:
        """What waits, in one transaction; it leaves the queue only when it is on the disk."""
        with self._wake:
            batch = list(islice(self._waiting, BATCH_ENTRIES))
        if not batch:
            return
        started_s = time.monotonic()
        self._store.append(batch)
        self.status.commit_s = max(self.status.commit_s, time.monotonic() - started_s)
        with self._wake:
            # The oldest may have been dropped for want of room in the meantime.
            for entry in batch:
                if self._waiting and self._waiting[0] is entry:
                    self._waiting.popleft()
        self.status.written += len(batch)

    def _upkeep(self) -> None:
        now_ms = int(self._wall() * 1e3)
        if time.monotonic() >= self._check_due_s:
            self._check_due_s = time.monotonic() + CHECK_S
            self._store.check()
        compact(self._store, self._keep, now_ms)
        rows = summed(self._store.connection, now_ms - AGREEMENT_DAYS * DAY_MS, now_ms + DAY_MS)
        before = {a.instance for a in self.status.agreements if a.disagrees}
        self.status.agreements = agreements(rows)
        for found in self.status.agreements:
            if found.disagrees and found.instance not in before:
                log.warning("ledger: %s", found.told())
        self.status.bytes = self._store.used_bytes()
        self._upkeep_due_s = time.monotonic() + UPKEEP_S

    def _replace(self, reason: str) -> None:
        try:
            self._store.replace(reason)
            self._begun = False
        except (sqlite3.Error, OSError, NewerFileError, ValueError) as error:
            self._fail(f"{reason}; {error}")
        self._count()

    def _count(self) -> None:
        self.status.set_aside, self.status.salvaged = self._store.set_aside, self._store.salvaged

    def _fail(self, reason: str) -> None:
        if self.status.fault is None:
            self.status.faults += 1
            log.error("ledger: %s; intervals are kept until they can be written", reason)
        self.status.fault = reason
        self._retry_due_s = time.monotonic() + RETRY_S
        self._upkeep_due_s = max(self._upkeep_due_s, self._retry_due_s)

    def _well(self) -> None:
        if self.status.fault is not None:
            log.warning("ledger: written again; %d intervals were lost so far", self.status.dropped)
        self.status.fault = None
