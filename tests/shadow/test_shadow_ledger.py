"""Shadow mode in the ledger and in the report, of files written before it was there, too."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from pathlib import Path

from kvwatt.holdout import Arm
from kvwattd.ledger.entry import Entry, values
from kvwattd.ledger.reading import read
from kvwattd.ledger.schema import INSERT, MIGRATIONS, migrate
from kvwattd.ledger.store import Store, readable
from kvwattd.money import CostConfig, load_rates
from kvwattd.report.curves import points
from kvwattd.report.figures import make
from kvwattd.report.words import in_short, lines

DAY_MS = 86_400_000
SHADOWED = Entry(
    "chat",
    DAY_MS,
    DAY_MS + 60_000,
    time_ms=60_000,
    energy_mj=10_000_000,
    would_mj=6_900_000,
    would_error_mj=200_000,
    would_ttft_met=996_000,
    would_ttft_seen=1_000_000,
    would_tbt_met=999_000,
    would_tbt_seen=1_000_000,
    ttft_met=1_000_000,
    ttft_seen=1_000_000,
    regimes={"shadow": 60_000},
)


def old_file(path: Path) -> None:
    """As the first version wrote it."""
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, MIGRATIONS[:1])
    there = [row[1] for row in connection.execute("PRAGMA table_info(entries)")][1:]
    told = dict(zip([item.name for item in fields(Entry)], values(SHADOWED), strict=True))
    marks = ", ".join("?" * len(there))
    connection.execute(f"INSERT INTO entries ({', '.join(there)}) VALUES ({marks})", [told[n] for n in there])
    connection.close()


def test_a_file_of_the_first_version_is_read_salvaged_and_brought_up(tmp_path: Path) -> None:
    """What it did not know is 0; nothing that it knew is lost."""
    path = tmp_path / "ledger.db"
    old_file(path)
    (row,) = read(path, 0, 2 * DAY_MS)
    assert (row.energy_mj, row.would_mj, row.would_error_mj, row.would_ttft_seen) == (
        10_000_000,
        6_900_000,
        0,
        0,
    )
    assert list(readable(path)) == [row]
    store = Store(path)
    store.open()
    store.connection.execute(INSERT, values(SHADOWED))
    store.close()
    assert read(path, 0, 2 * DAY_MS) == [row, SHADOWED]


def test_the_report_says_it_in_one_line_with_the_interval_and_the_promise_kept_least() -> None:
    report = make([SHADOWED], DAY_MS, 2 * DAY_MS, load_rates(CostConfig()))
    told = in_short(report.total)
    assert told is not None
    assert (
        told.startswith("would have saved 31 % ± 2 at 99.6 % (the promise kept least)") and "estimate" in told
    )
    shown = dict(lines(report.total, report))
    assert shown["shadow mode"] == told
    assert "TTFT 99.60% of 1,000" in shown["promises that would have been kept"]


def test_without_shadow_mode_it_says_nothing() -> None:
    active = Entry("chat", DAY_MS, DAY_MS + 1, mode="active", arm=Arm.CONTROLLED, time_ms=1, energy_mj=5)
    report = make([active], DAY_MS, 2 * DAY_MS, load_rates(CostConfig()))
    assert in_short(report.total) is None and "shadow mode" not in dict(lines(report.total, report))


def test_the_page_draws_what_control_would_have_drawn() -> None:
    report = make([SHADOWED], DAY_MS, 2 * DAY_MS, load_rates(CostConfig()))
    (point,) = points([SHADOWED], report)
    assert point.power_w == 10_000 / 60 and point.would_w == 6_900 / 60
