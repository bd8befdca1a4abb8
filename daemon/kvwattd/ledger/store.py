"""The ledger's file: opened, checked, written and set aside where it is damaged. Used by one thread.

Write-ahead log and synchronous=FULL: what was committed survives a loss of power, for one fsync per interval.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kvwattd.ledger.entry import Entry, entry_from, values
from kvwattd.ledger.schema import BEGIN_RUN, INSERT, SELECT, SELECT_RUNS, Run, migrate, select_in

log = logging.getLogger(__name__)

ASIDE_KEPT = 3
BUSY_S = 5.0
WAL_LIMIT_BYTES = 4 << 20
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def damaged(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, not its surroundings."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED


class Store:
    """Call `open` before anything else; every method may raise sqlite3.Error or OSError."""

    def __init__(self, path: Path, wall: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall = wall
        self._connection: sqlite3.Connection | None = None
        self.set_aside = 0
        self.salvaged = 0

    def open(self) -> None:
        """Raises NewerFileError on a file that a later version wrote. A damaged one is set aside."""
        if self._connection is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = _checked(self._path)
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
            self.replace(str(error))

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
            self._connection = None

    @property
    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.ProgrammingError("the ledger is not open")
        return self._connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def append(self, entries: Iterable[Entry]) -> None:
        """On disk when it returns."""
        with self.transaction() as connection:
            connection.executemany(INSERT, map(values, entries))

    def begin_run(self, run: Run) -> None:
        """Keep what this start of the daemon draws its windows from; once is enough."""
        with self.transaction() as connection:
            connection.execute(BEGIN_RUN, run)

    def check(self) -> None:
        """Read all of the file anew. Raises sqlite3.DatabaseError where it is damaged."""
        _checked(self._path).close()

    def used_bytes(self) -> int:
        """Pages that hold something."""
        c = self.connection
        pages, free, size = (
            int(c.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def replace(self, reason: str) -> None:
        """Set the file aside, begin a new one, and take over every row that can still be read."""
        self.close()
        aside = self._aside()
        log.error("ledger: %s is damaged (%s): set aside as %s", self._path, reason, aside.name)
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self._path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        self.set_aside += 1
        self._connection = _checked(self._path)
        kept, runs = list(readable(aside)), list(readable_runs(aside))
        with self.transaction() as connection:
            connection.executemany(BEGIN_RUN, runs)
            connection.executemany(INSERT, map(values, kept))
        self.salvaged += len(kept)
        log.warning("ledger: %d rows of %s were taken over", len(kept), aside.name)
        self._forget_older()

    def _aside(self) -> Path:
        stamp, number = int(self._wall()), 0
        while (path := Path(f"{self._path}.damaged-{stamp}.{number}")).exists():
            number += 1
        return path

    def _forget_older(self) -> None:
        pattern = f"{self._path.name}.damaged-*"
        found = [p for p in self._path.parent.glob(pattern) if not p.name.endswith(("-wal", "-shm"))]
        for path in sorted(found, key=lambda p: p.stat().st_mtime)[:-ASIDE_KEPT]:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)


def _checked(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.DatabaseError where the file is damaged, NewerFileError."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        told = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if told != "ok":
            error = sqlite3.DatabaseError(str(told))
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def readable(path: Path) -> Iterator[Entry]:
    """Rows of a damaged file: from its beginning up to the damage, and from its end back to it."""
    columns = _select(path).removeprefix("SELECT ")
    seen: set[object] = set()
    for order in ("ASC", "DESC"):
        for number, *row in _until_damage(path, f"SELECT id, {columns} ORDER BY id {order}"):
            if number in seen:
                break
            seen.add(number)
            with contextlib.suppress(ValueError, TypeError):
                yield entry_from(row)


def _select(path: Path) -> str:
    """Of the columns that the file has, where that can still be seen."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection:
        return select_in(connection)
    return SELECT


def readable_runs(path: Path) -> Iterator[Run]:
    for start_ms, *told in _until_damage(path, SELECT_RUNS):
        if type(start_ms) is int:
            yield start_ms, str(told[0]), str(told[1]), str(told[2])


def _until_damage(path: Path, query: str) -> Iterator[Sequence[object]]:
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            yield from connection.execute(query)
        finally:
            connection.close()
