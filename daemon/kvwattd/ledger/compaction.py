"""Keeps the ledger small: intervals become hours, hours days, days end; sums are conserved exactly.

Windows held at driver default stay as they are until the days end: they are few, and what is proven rests on
each of them. One bucket is one transaction, so that a crash leaves rows of one kind or the other, never both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvwatt.holdout import Arm
from kvwattd.ledger.entry import Level, entry_from, merged, values
from kvwattd.ledger.schema import INSERT, SELECT
from kvwattd.ledger.store import Store

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_MERGED = "level = ? AND arm != ? AND start_ms >= ? AND start_ms < ?"


@dataclass(frozen=True, slots=True)
class Keep:
    """For how long rows of each level are kept, and how much they may take in all."""

    intervals_ms: int
    hours_ms: int
    days_ms: int
    max_bytes: int


def compact(store: Store, keep: Keep, now_ms: int) -> int:
    """Merge and delete what is older than it should be; how many buckets changed. Raises sqlite3.Error."""
    done = sum(1 for _ in _merge_before(store, Level.INTERVAL, now_ms - keep.intervals_ms))
    done += sum(1 for _ in _merge_before(store, Level.HOUR, now_ms - keep.hours_ms))
    oldest = _oldest(store, "start_ms < ?", (now_ms - keep.days_ms,))
    if oldest is not None:  # one day at a time: a wall clock that jumps ahead for an hour ends no ledger
        done += _delete_before(store, min(now_ms - keep.days_ms, oldest - oldest % DAY_MS + DAY_MS))
    while store.used_bytes() > keep.max_bytes and _make_room(store, now_ms):
        done += 1
    return done


def _make_room(store: Store, now_ms: int) -> bool:
    """The mildest step there is: the oldest hour merged, else the oldest day, else the oldest day deleted."""
    for level, width_ms in ((Level.INTERVAL, HOUR_MS), (Level.HOUR, DAY_MS)):
        # The bucket in progress is left alone: what is merged gets no more rows.
        if any(True for _ in _merge_before(store, level, now_ms - now_ms % width_ms, most=1)):
            return True
    oldest = _oldest(store, "1", ())
    if oldest is None or oldest >= now_ms - now_ms % DAY_MS:
        return False
    return _delete_before(store, oldest - oldest % DAY_MS + DAY_MS) > 0


def _merge_before(store: Store, level: Level, before_ms: int, most: int | None = None) -> Iterator[int]:
    """Merge buckets that end before `before_ms`, the oldest first; yields the start of each."""
    width_ms = HOUR_MS if level is Level.INTERVAL else DAY_MS
    end_ms, number = before_ms - before_ms % width_ms, 0
    while most is None or number < most:
        oldest = _oldest(store, "level = ? AND arm != ? AND start_ms < ?", (level, str(Arm.DEFAULT), end_ms))
        if oldest is None:
            return
        start_ms = oldest - oldest % width_ms
        _merge(store, level, start_ms, start_ms + width_ms)
        number += 1
        yield start_ms


def _merge(store: Store, level: Level, start_ms: int, end_ms: int) -> None:
    where = (int(level), str(Arm.DEFAULT), start_ms, end_ms)
    with store.transaction() as connection:
        rows = [entry_from(row) for row in connection.execute(f"{SELECT} WHERE {_MERGED}", where)]
        connection.execute(f"DELETE FROM entries WHERE {_MERGED}", where)  # noqa: S608 (constant)
        connection.executemany(INSERT, map(values, merged(rows, Level(level + 1))))


def _delete_before(store: Store, before_ms: int) -> int:
    with store.transaction() as connection:
        gone = connection.execute("DELETE FROM entries WHERE start_ms < ?", (before_ms,)).rowcount
        newest = connection.execute("SELECT max(start_ms) FROM runs").fetchone()[0]
        connection.execute(
            "DELETE FROM runs WHERE start_ms < ? AND start_ms != ? "
            "AND start_ms NOT IN (SELECT DISTINCT run FROM entries)",
            (before_ms, newest),
        )
    return gone


def _oldest(store: Store, where: str, arguments: tuple[object, ...]) -> int | None:
    query = f"SELECT min(start_ms) FROM entries WHERE {where}"  # noqa: S608 (of our own)
    found = store.connection.execute(query, arguments).fetchone()[0]
    return None if found is None else int(found)
