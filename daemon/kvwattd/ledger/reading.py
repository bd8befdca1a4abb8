"""Reads a ledger, the daemon running or not. Never writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from kvwatt.holdout import Arm
from kvwattd.ledger.entry import SUMS, Entry, Level, entry_from
from kvwattd.ledger.schema import MIGRATIONS, SELECT, SELECT_RUNS, NewerFileError, Run, select_in

BUSY_S = 5.0
# There is no log beside the file, and none can be made.
_NO_LOG = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})


class LedgerUnreadableError(Exception):
    """There is no ledger, or it cannot be read; the message names the file and why."""


def read(path: Path, from_ms: int, to_ms: int, instances: Iterable[str] = ()) -> list[Entry]:
    """Rows that begin in [from_ms, to_ms), oldest first; of these instances, if any are named.

    A row that was merged counts whole where it begins. Raises LedgerUnreadableError.
    """
    if not path.is_file():
        raise LedgerUnreadableError(f"{path}: there is no such file")
    try:
        connection = _open(path)
    except sqlite3.Error as error:
        raise LedgerUnreadableError(f"{path}: {error}") from error
    try:
        rows = entries(connection, from_ms, to_ms)
    except (sqlite3.Error, ValueError, NewerFileError) as error:
        raise LedgerUnreadableError(f"{path}: {error}") from error
    finally:
        connection.close()
    wanted = set(instances)
    return [row for row in rows if not wanted or row.instance in wanted]


def runs(path: Path) -> list[Run]:
    """Starts of the daemon, with what each drew its windows from. Raises LedgerUnreadableError."""
    try:
        connection = _open(path)
        try:
            return [
                (int(at), str(v), str(seed), str(told))
                for at, v, seed, told in connection.execute(SELECT_RUNS)
            ]
        finally:
            connection.close()
    except (sqlite3.Error, ValueError) as error:
        raise LedgerUnreadableError(f"{path}: {error}") from error


def entries(connection: sqlite3.Connection, from_ms: int, to_ms: int) -> list[Entry]:
    """Rows that begin in [from_ms, to_ms), oldest first. Raises sqlite3.Error, ValueError, NewerFileError."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise NewerFileError(f"schema version {version}: written by a later kvwatt; use that one to read it")
    found = connection.execute(
        f"{select_in(connection)} WHERE start_ms >= ? AND start_ms < ? ORDER BY start_ms, id",
        (from_ms, to_ms),
    )
    return [entry_from(row) for row in found]


def summed(connection: sqlite3.Connection, from_ms: int, to_ms: int) -> list[Entry]:
    """What an estimate needs: windows one by one, time in control as one row an instance, without its tables.

    The sums are SQLite's: of many instances' weeks they take a moment, and not the interpreter's lock.
    """
    where = "arm = ? AND start_ms >= ? AND start_ms < ?"
    windows = connection.execute(f"{SELECT} WHERE {where}", (str(Arm.DEFAULT), from_ms, to_ms))
    found = [entry_from(row) for row in windows]
    sums = ", ".join(f"sum({name})" for name in SUMS)
    query = (
        f"SELECT instance, min(start_ms), max(end_ms), {sums} FROM entries WHERE {where} GROUP BY instance"  # noqa: S608
    )
    for name, start_ms, end_ms, *values in connection.execute(query, (str(Arm.CONTROLLED), from_ms, to_ms)):
        told = dict(zip(SUMS, values, strict=True))
        found.append(Entry(name, start_ms, end_ms, Level.DAY, arm=Arm.CONTROLLED, **told))
    return found


def _open(path: Path) -> sqlite3.Connection:
    """Read-only; of a folder that cannot be written, which has no log beside the file, as it lies there."""
    uri = path.resolve().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in _NO_LOG or Path(f"{path}-wal").exists():
            raise
        connection = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True)
    return connection
