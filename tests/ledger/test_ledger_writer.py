"""The ledger's thread: SIGKILL, full disks and damage at any moment; the loop never waits."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger_kills import kill_once
from ledger_player import KEEP
from ledger_rows import DAY_MS, START_MS, held, row

from kvwattd.ledger import writer as writing
from kvwattd.ledger.reading import read
from kvwattd.ledger.writer import LedgerWriter

ALL = (0, 2**62)
RUN = (1, "test", "00", "{}")


def until(told: Callable[[], object], seconds: float = 90.0) -> None:
    end_s = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end_s, "not within the time"
        time.sleep(0.01)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], LedgerWriter]]:
    monkeypatch.setattr(writing, "RETRY_S", 0.05)
    made: list[LedgerWriter] = []

    def begin(path: Path) -> LedgerWriter:
        made.append(LedgerWriter(path, KEEP, RUN))
        made[-1].start()
        return made[-1]

    yield begin
    for one in made:
        one.close()


def test_a_kill_loses_nothing_that_was_on_the_disk(tmp_path: Path) -> None:
    """SIGKILL again and again over one file: no row missing, none twice, what was kept is there."""
    rng, path = random.Random(7), tmp_path / "ledger.db"
    for _ in range(4):
        killed = kill_once(path, rng, period_s=0.05, most_s=0.3)
        assert killed.wrong is None
        assert killed.kept <= killed.found
    while not killed.found:  # a busy disk takes longer than these lives lasted
        killed = kill_once(path, rng, period_s=0.05, most_s=10.0)
        assert killed.wrong is None and killed.kept <= killed.found


def test_what_is_queued_is_written_at_the_end(tmp_path: Path, make: Callable[[Path], LedgerWriter]) -> None:
    writer = make(tmp_path / "deep" / "ledger.db")
    for i in range(500):
        writer.put(row(i))
    writer.close()
    assert len(read(tmp_path / "deep" / "ledger.db", *ALL)) == 500
    assert writer.status.written == 500 and writer.status.fault is None


def test_handing_over_never_waits_and_overflow_is_counted(
    tmp_path: Path, make: Callable[[Path], LedgerWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the folder cannot be made the queue fills up to its bound; the oldest go, and are counted."""
    monkeypatch.setattr(writing, "QUEUE_ENTRIES", 100)
    (tmp_path / "file").write_text("in the way")
    writer = make(tmp_path / "file" / "ledger.db")
    until(lambda: writer.status.fault)
    for i in range(150):
        writer.put(row(i))
    assert (writer.waiting, writer.status.dropped) == (100, 50)
    (tmp_path / "file").unlink()
    until(lambda: writer.status.fault is None)
    until(lambda: writer.waiting == 0)
    found = read(tmp_path / "file" / "ledger.db", *ALL)
    assert [one.start_ms for one in found] == [row(i).start_ms for i in range(50, 150)]
    assert writer.status.faults == 1


def test_a_full_disk_is_told_and_got_over(tmp_path: Path, make: Callable[[Path], LedgerWriter]) -> None:
    """Not a byte free: intervals are kept, a fault shows; with room again all are written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "kvwatt-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs root")
    try:
        writer = make(disk / "ledger.db")
        writer.put(row(0))
        until(lambda: writer.status.written == 1)
        _fill(disk / "filler")
        for i in range(1, 1000):
            writer.put(row(i))
        until(lambda: writer.status.fault)
        assert "full" in (writer.status.fault or "") or "I/O" in (writer.status.fault or "")
        (disk / "filler").unlink()
        until(lambda: writer.waiting == 0)
        writer.close()
        assert writer.status.fault is None and writer.status.dropped == 0
        assert len(read(disk / "ledger.db", *ALL)) == 1000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def test_damage_under_the_running_writer_is_found(
    tmp_path: Path, make: Callable[[Path], LedgerWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is overwritten under the writer: upkeep finds it, sets it aside, and a new one goes on."""
    monkeypatch.setattr(writing, "UPKEEP_S", 0.1)
    monkeypatch.setattr(writing, "CHECK_S", 0.1)
    path = tmp_path / "ledger.db"
    writer = make(path)
    for i in range(50):
        writer.put(row(i))
    until(lambda: writer.status.written == 50)
    for suffix in ("", "-wal"):
        part = Path(f"{path}{suffix}")
        with part.open("r+b") as file:
            file.write(b"\xff" * max(part.stat().st_size, 8192))
    until(lambda: writer.status.set_aside == 1)
    writer.put(row(99))
    writer.close()
    assert writer.status.fault is None
    assert row(99).start_ms in {one.start_ms for one in read(path, *ALL)}


def test_a_later_versions_file_is_left_alone(tmp_path: Path, make: Callable[[Path], LedgerWriter]) -> None:
    """It stays as it is, and the fault says why nothing is written."""
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    writer = make(path)
    writer.put(row(0))
    until(lambda: writer.status.fault)
    assert "later" in (writer.status.fault or "")
    writer.close()
    assert writer.waiting == 1
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    connection.close()


@pytest.mark.parametrize(("factor", "alarm"), [(1.0, False), (1.5, True)])
def test_a_model_that_disagrees_with_the_windows_is_an_alarm(
    tmp_path: Path, factor: float, alarm: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Upkeep compares the last week's two figures; a model half as high again is told in the log, once."""
    rows = [held(i, slot=i, energy_mj=18_000_000 + 100_000 * (i % 7)) for i in range(0, 1000, 100)]
    rows += [row(i, default_mj=round(18_300_000 * factor)) for i in range(1000) if i % 100]
    writer = LedgerWriter(tmp_path / "ledger.db", KEEP, RUN, wall=lambda: (START_MS + DAY_MS) / 1e3)
    for one in rows:
        writer.put(one)
    writer.start()
    until(lambda: writer.status.written == len(rows))
    writer._upkeep_due_s = 0.0
    writer.put(row(1001))
    until(lambda: writer.status.agreements)
    writer.close()
    (found,) = writer.status.agreements
    assert (found.instance, found.measured.windows, found.disagrees) == ("a", 10, alarm)
    assert found.attainment
    assert ("train the model again" in caplog.text) == alarm
