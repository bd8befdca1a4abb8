"""The ledger's file: what goes in comes out, merges conserve every sum, damage loses nothing readable."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_rows import DAY_MS, MINUTE_MS, START_MS, entries, held, maps, row, sums

from kvwatt.holdout import Arm
from kvwattd.ledger.compaction import Keep, compact
from kvwattd.ledger.entry import Level, values
from kvwattd.ledger.reading import LedgerUnreadableError, read
from kvwattd.ledger.schema import MIGRATIONS, NewerFileError, migrate
from kvwattd.ledger.store import Store

ALL = (0, 2**62)
SMALL = Keep(intervals_ms=DAY_MS, hours_ms=7 * DAY_MS, days_ms=1000 * DAY_MS, max_bytes=10**9)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "ledger.db")
    made.open()
    return made


def path_of(store: Store) -> Path:
    return Path(store.connection.execute("PRAGMA database_list").fetchone()[2])


@settings(max_examples=30, deadline=None)
@given(st.lists(entries, max_size=8))
def test_what_goes_in_comes_out(rows: list) -> None:
    """Every field of every row, in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ledger.db")
        store.open()
        store.append(rows)
        found = read(Path(folder) / "ledger.db", *ALL)
        store.close()
    # By what is written: the order of a mapping's names is none of a row's.
    assert sorted(found, key=values) == sorted(rows, key=values)
    assert [one.start_ms for one in found] == sorted(one.start_ms for one in rows)


@settings(max_examples=30, deadline=None)
@given(st.lists(entries, min_size=1, max_size=40), st.integers(0, 60))
def test_merging_conserves_every_sum_exactly(rows: list, days_later: int) -> None:
    """However old the rows are: sums by instance, mode and arm are what they were, to the millijoule."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ledger.db")
        store.open()
        store.append(rows)
        compact(store, SMALL, START_MS + days_later * DAY_MS)
        compact(store, SMALL, START_MS + days_later * DAY_MS)  # again: nothing is counted twice
        found = read(Path(folder) / "ledger.db", *ALL)
        store.close()
    assert len(found) <= len(rows)
    for key in {(one.instance, one.mode, one.arm) for one in rows}:
        before = [one for one in rows if (one.instance, one.mode, one.arm) == key]
        after = [one for one in found if (one.instance, one.mode, one.arm) == key]
        assert sums(after) == sums(before)
        assert maps(after) == maps(before)


def test_minutes_become_hours_and_hours_days_and_windows_stay(store: Store) -> None:
    """Ten days, a row every ten minutes: the newest as they were, older by the hour, then by the day."""
    rows = [row(i) for i in range(0, 10 * 24 * 60, 10)]
    rows += [held(i, slot=i) for i in range(0, 10 * 24 * 60, 1440)]
    store.append(rows)
    now_ms = START_MS + 10 * DAY_MS
    compact(store, SMALL, now_ms)
    found = read(path_of(store), *ALL)
    levels = {level: [r for r in found if r.level is level and r.arm is Arm.CONTROLLED] for level in Level}
    assert [len(levels[level]) for level in Level] == [24 * 6, 6 * 24, 3]
    assert sorted(r.slot for r in found if r.arm is Arm.DEFAULT) == list(range(0, 14400, 1440))
    assert sums(found) == sums(rows)
    assert all(r.end_ms - r.start_ms == 51 * MINUTE_MS for r in levels[Level.HOUR])


def test_days_end(store: Store) -> None:
    """What is older than days are kept is gone, windows with it."""
    store.append([row(0), held(1, slot=1), row(5 * 24 * 60)])
    compact(store, Keep(DAY_MS, DAY_MS, 2 * DAY_MS, 10**9), START_MS + 6 * DAY_MS)
    assert [r.start_ms for r in read(path_of(store), *ALL)] == [START_MS + 5 * DAY_MS]


def test_the_size_is_bounded(store: Store) -> None:
    """Days of minutes in 100 kB: coarser, but every minute is accounted for."""
    limit = 100_000
    for day in range(4):
        store.append([row(day * 1440 + i) for i in range(1440)])
        compact(
            store,
            Keep(10_000 * DAY_MS, 10_000 * DAY_MS, 10_000 * DAY_MS, limit),
            START_MS + (day + 1) * DAY_MS,
        )
        assert store.used_bytes() <= limit
    found = read(path_of(store), *ALL)
    assert sum(r.time_ms for r in found) == 4 * DAY_MS


def test_a_run_of_slots_is_kept_with_its_seed(store: Store) -> None:
    """Anybody can draw the windows again; telling it twice changes nothing."""
    for seed in ("aa", "bb"):
        store.begin_run((7, "1.0", seed, "{}"))
    assert store.connection.execute("SELECT * FROM runs").fetchall() == [(7, "1.0", "aa", "{}")]


def test_an_older_file_is_migrated_and_a_newer_one_refused(tmp_path: Path) -> None:
    """A migration that fails half-way leaves the version before; a later version's file is not touched."""
    path = tmp_path / "ledger.db"
    store = Store(path)
    store.open()
    store.append([row(0)])
    store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    broken = (*MIGRATIONS, "ALTER TABLE entries ADD COLUMN extra INTEGER DEFAULT 3; SELECT * FROM nowhere;")
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, broken)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    assert migrate(connection, (*MIGRATIONS, "ALTER TABLE entries ADD COLUMN extra INTEGER DEFAULT 3;")) == 1
    assert connection.execute("SELECT extra FROM entries").fetchall() == [(3,)]
    connection.close()
    with pytest.raises(NewerFileError, match="a later one wrote it"):
        Store(path).open()
    with pytest.raises(LedgerUnreadableError, match="later kvwatt"):
        read(path, *ALL)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_damaged_file_is_set_aside_and_what_is_readable_is_kept(tmp_path: Path, share: float) -> None:
    """Pages in the middle are overwritten: rows before and after them go on in a new file."""
    path = tmp_path / "ledger.db"
    store = Store(path)
    store.open()
    store.begin_run((7, "1.0", "aa", "{}"))
    store.append([row(i) for i in range(3000)])
    store.close()
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * share) // 4096 * 4096)
        file.write(random.Random(1).randbytes(3 * 4096))
    again = Store(path)
    again.open()
    assert again.set_aside == 1 and again.salvaged > 2000
    assert len(list(tmp_path.glob("ledger.db.damaged-*"))) == 1
    again.append([row(5000)])
    found = read(path, *ALL)
    assert len(found) == again.salvaged + 1
    assert len({r.start_ms for r in found}) == len(found)
    assert again.connection.execute("SELECT seed FROM runs").fetchall() == [("aa",)]


@pytest.mark.parametrize(
    "content", [b"", b"no database at all" * 500, b"SQLite format 3\x00" + b"\x00" * 5000]
)
def test_a_file_that_is_no_ledger_does_not_stop_a_new_one(tmp_path: Path, content: bytes) -> None:
    """An empty file is taken; anything else is set aside."""
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    store = Store(path)
    store.open()
    store.append([row(0)])
    assert len(read(path, *ALL)) == 1
    assert store.set_aside == bool(content)


def test_only_so_many_damaged_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for i in range(5):
        path.write_bytes(b"x" * 5000)
        store = Store(path, wall=lambda i=i: float(i))
        store.open()
        store.close()
    assert len(list(tmp_path.glob("ledger.db.damaged-*"))) == 3


def test_reading_needs_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnreadableError, match="no such file"):
        read(tmp_path / "nothing.db", *ALL)
    (tmp_path / "text.db").write_text("hello" * 1000)
    with pytest.raises(LedgerUnreadableError, match=r"text\.db"):
        read(tmp_path / "text.db", *ALL)


def test_a_range_and_instances_are_chosen(store: Store) -> None:
    store.append([row(i, instance=name) for i in range(10) for name in ("a", "b")])
    found = read(path_of(store), START_MS + 2 * MINUTE_MS, START_MS + 5 * MINUTE_MS, ["b"])
    assert [(r.instance, r.start_ms - START_MS) for r in found] == [("b", i * MINUTE_MS) for i in (2, 3, 4)]


def test_another_user_may_read_with_and_without_a_writer(tmp_path: Path) -> None:
    """As `kvwatt report` is run: the folder is not his, the log may be there or not."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = Store(Path(folder) / "ledger.db")
        store.open()
        store.append([row(i) for i in range(5)])
        assert _read_as_nobody(Path(folder) / "ledger.db") == 5
        store.close()
        assert _read_as_nobody(Path(folder) / "ledger.db") == 5


AS_NOBODY = """
import os, sys
from pathlib import Path
from kvwattd.ledger.reading import read
os.setgid(65534)
os.setuid(65534)
sys.stdout.write(str(len(read(Path(sys.argv[1]), 0, 2**62))))
"""


def _read_as_nobody(path: Path) -> int:
    """Number of rows that a process without rights finds."""
    command = [sys.executable, "-c", AS_NOBODY, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_alarms_of_the_ledger_are_on_the_first_screen() -> None:
    """`kvwatt status`: what cannot be written, who is held, which figures disagree."""
    from kvwattd.api.schemas.ledger import HoldoutView, LedgerView, MeasuredView
    from kvwattd.commands.status_alarms import _ledger

    quiet = MeasuredView(
        instance="a", baseline_j=9e6, saved_j=3e6, low_j=2e6, high_j=4e6, level=0.99, windows=9,
        model_saved_j=3e6, disagrees=False,
    )  # fmt: skip
    view = LedgerView(
        enabled=True, holdouts=[HoldoutView(instance="a", arm=Arm.CONTROLLED)], measured=[quiet]
    )
    assert list(_ledger(view)) == []
    loud = view.model_copy(
        update={
            "fault": "disk full",
            "waiting": 3,
            "holdouts": [HoldoutView(instance="a", arm=Arm.WARMUP)],
            "measured": [quiet.model_copy(update={"disagrees": True})],
        }
    )
    told = list(_ledger(loud))
    assert [error for _, error in told] == [True, False, True]
    assert "disk full; 3 intervals wait" in told[0][0] and "held at driver default" in told[1][0]
