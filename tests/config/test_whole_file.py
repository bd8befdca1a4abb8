"""Whole or not at all: with writers at the same moment, and with a disk that takes nothing."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from kvwattd.whole_file import write_whole


def test_writers_at_once_leave_what_one_of_them_wrote(tmp_path: Path) -> None:
    """Records of unequal length, as the start of an instance is: no end of one stays behind another."""
    path = tmp_path / "record"
    contents = [b"%d" % number * length for number, length in enumerate((1, 90, 4000, 70_000))]
    write_whole(path, contents[0])
    over = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    def write(content: bytes) -> None:
        for _ in range(200):
            write_whole(path, content, durable=False)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    over.set()
    reader.join()
    assert seen <= set(contents)
    assert [found.name for found in tmp_path.iterdir()] == ["record"]


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The old file stands, and nothing lies beside it."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "record"
    write_whole(path, b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["record"]


def test_permissions_and_links(tmp_path: Path) -> None:
    """This user alone unless told; a link is replaced, and what it led to is not written."""
    target, path = tmp_path / "target", tmp_path / "record"
    target.write_bytes(b"theirs")
    path.symlink_to(target)
    write_whole(path, b"ours")
    assert not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    assert target.read_bytes() == b"theirs"
    write_whole(path, b"shown", mode=0o644)
    assert path.stat().st_mode & 0o777 == 0o644
