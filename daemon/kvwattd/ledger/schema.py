"""The ledger's tables, and how an older file becomes a newer one.

`PRAGMA user_version` counts the migrations a file has been through. Each is one transaction: a crash in the
middle leaves the version before. What a migration that was released says never changes; a new one is added.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from kvwattd.ledger.entry import NAMES

Run = tuple[int, str, str, str]  # start in ms, version, seed, parameters of the holdout
APPLICATION_ID = 0x6B767774  # "kvwt"

_FIRST = """
CREATE TABLE runs (
    start_ms INTEGER PRIMARY KEY, version TEXT NOT NULL, seed TEXT NOT NULL, holdout TEXT NOT NULL
);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    instance TEXT NOT NULL, start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, level INTEGER NOT NULL,
    mode TEXT NOT NULL, arm TEXT NOT NULL, stratum INTEGER NOT NULL, run INTEGER NOT NULL,
    slot INTEGER NOT NULL, place INTEGER NOT NULL, gpus INTEGER NOT NULL, clock_min_mhz INTEGER NOT NULL,
    clock_max_mhz INTEGER NOT NULL, time_ms INTEGER NOT NULL, energy_mj INTEGER NOT NULL,
    estimated_mj INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, generation_tokens INTEGER NOT NULL,
    requests INTEGER NOT NULL, ttft_met INTEGER NOT NULL, ttft_seen INTEGER NOT NULL,
    tbt_met INTEGER NOT NULL, tbt_seen INTEGER NOT NULL, e2e_met INTEGER NOT NULL,
    e2e_seen INTEGER NOT NULL, clock_mhz_ms INTEGER NOT NULL, default_mj INTEGER NOT NULL,
    would_mj INTEGER NOT NULL, work_mj INTEGER NOT NULL, work_ms INTEGER NOT NULL,
    regimes TEXT NOT NULL, bindings TEXT NOT NULL, fixed TEXT NOT NULL
);
CREATE INDEX entries_by_time ON entries (level, start_ms);
"""
# What shadow mode would have cost, and how sure its saving is.
_SHADOW = "".join(
    f"ALTER TABLE entries ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0;"
    for name in (
        "would_error_mj",
        *(f"would_{metric}_{what}" for metric in ("ttft", "tbt", "e2e") for what in ("met", "seen")),
    )
)
MIGRATIONS = (_FIRST, _SHADOW)

_COLUMNS = ", ".join(NAMES)
INSERT = f"INSERT INTO entries ({_COLUMNS}) VALUES ({', '.join('?' * len(NAMES))})"  # noqa: S608
BEGIN_RUN = "INSERT OR IGNORE INTO runs (start_ms, version, seed, holdout) VALUES (?, ?, ?, ?)"
SELECT_RUNS = "SELECT start_ms, version, seed, holdout FROM runs"
SELECT = f"SELECT {_COLUMNS} FROM entries"  # noqa: S608 (both of our own names)


def select_in(connection: sqlite3.Connection) -> str:
    """SELECT for a file that may be of an earlier version: numbers that it does not have are 0.

    Raises sqlite3.Error.
    """
    there = {str(row[1]) for row in connection.execute("PRAGMA table_info(entries)")}
    columns = ", ".join(name if name in there else f"0 AS {name}" for name in NAMES)
    return f"SELECT {columns} FROM entries"  # noqa: S608 (our own names)


class NewerFileError(Exception):
    """Written by a later version, which this one must not touch."""


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> int:
    """Bring the file to the newest version; how many steps that took. Raises NewerFileError, sqlite3.Error.

    The connection is in autocommit mode (isolation_level None).
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(migrations):
        raise NewerFileError(
            f"its schema is version {version}, this kvwatt knows {len(migrations)}: a later one wrote it"
        )
    for number, script in enumerate(migrations[version:], start=version + 1):
        stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {script} {stamp} COMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(migrations) - version
