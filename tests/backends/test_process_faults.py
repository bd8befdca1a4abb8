"""Instances as real child processes, failing in every way that a process and its records can."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest
from process_stage import (
    DEADLINE_S,
    DEAF,
    PARENT,
    SLEEP,
    backend_of,
    killed,
    python,
    refused,
    until,
)

from kvwattd.instances.backend import BackendState, Cause
from kvwattd.instances.process import Launch
from kvwattd.instances.process_state import StopLimits


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (Launch(("no-such-program",)), "cannot run 'no-such-program'"),
        (Launch(("sleep", "1"), folder=Path("/nonesuch")), "/nonesuch"),
        (Launch(("false",)), "ended by itself"),
    ],
)
async def test_a_start_that_fails(folder: Path, launch: Launch, words: str) -> None:
    """It is told as FAILED with the reason, over a restart too; a stop forgets it, a start tries again."""
    backend = backend_of(folder, {"a": launch})
    await backend.start("a")
    await until(backend, "a", BackendState.FAILED)
    assert words in backend.reasons["a"]
    again = backend_of(folder, {"a": SLEEP})
    assert (await again.states())["a"] is BackendState.FAILED
    await again.start("a")
    await until(again, "a", BackendState.RUNNING)
    await again.stop("a")
    await until(again, "a", BackendState.STOPPED)


async def test_one_that_is_killed(folder: Path) -> None:
    """Killed by somebody else: FAILED, and a start brings up another."""
    backend = backend_of(folder, {"a": SLEEP})
    pid = await killed(backend, "a")
    await backend.start("a")
    await until(backend, "a", BackendState.RUNNING)
    assert (await backend.processes())["a"] != {pid}


async def test_how_it_ended(folder: Path) -> None:
    """The exit status or the signal is told, as far as this kvwatt saw it."""
    launches = {"a": python("raise SystemExit(3)"), "b": SLEEP}
    backend = backend_of(folder, launches)
    await backend.start("a")
    await until(backend, "a", BackendState.FAILED)
    assert (await backend_of(folder, launches).states())["a"] is BackendState.FAILED
    await backend.states()
    assert "status 3" in backend.reasons["a"]


async def test_killed_before_it_was_anything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory while its interpreter starts: told at once, and a start tries again."""
    backend = backend_of(folder, {"a": SLEEP})
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        await backend.start("a")
    await until(backend, "a", BackendState.FAILED)
    assert "ended early: status 1" in backend.reasons["a"], "not because its start is overdue"
    await backend.start("a")
    await until(backend, "a", BackendState.RUNNING)


async def test_killed_while_nobody_looked(folder: Path) -> None:
    """It ended between two kvwatts, and its number went to another: FAILED, and that one is let be."""
    backend = backend_of(folder, {"a": SLEEP})
    await killed(backend, "a")
    record = {"pid": os.getpid(), "ticks": 1, "boot_id": "", "nonce": "0"}
    (folder / "a.failed").unlink()
    (folder / "a.pid").write_text(json.dumps(record))
    again = backend_of(folder, {"a": SLEEP})
    assert (await again.states())["a"] is BackendState.FAILED
    await again.stop("a")
    assert (await again.states())["a"] is BackendState.STOPPED, "and this test still runs"


async def test_workers_that_outlive_their_server(folder: Path) -> None:
    """FAILED and not to be started while they hold the GPU; a stop ends them."""
    backend = backend_of(folder, {"a": python(PARENT)})
    await backend.start("a")
    await until(backend, "a", BackendState.FAILED)
    assert "left processes behind" in backend.reasons["a"]
    assert (await refused(backend.start("a"))).cause == Cause.STATE
    assert len((await backend.processes())["a"]) == 1
    await backend.stop("a")
    await until(backend, "a", BackendState.STOPPED)
    assert not (await backend.processes())["a"]


async def test_deaf_to_sigterm(folder: Path) -> None:
    """Past the deadline it is FAILED and still there: SIGKILL is the operator's choice, and then it comes."""
    now_s = time.monotonic()
    backend = backend_of(folder, {"a": python(DEAF)}, limits=StopLimits(deadline_s=1.0), now=lambda: now_s)
    await backend.start("a")
    until_s = time.monotonic() + DEADLINE_S
    while not (backend.log("a").exists() and backend.log("a").read_text()):
        assert time.monotonic() < until_s
        await asyncio.sleep(0.01)
    await backend.stop("a")
    assert (await backend.states())["a"] is BackendState.STOPPING
    assert (await refused(backend.start("a"))).cause == Cause.STATE
    now_s += 1.5
    await until(backend, "a", BackendState.FAILED)
    assert "still there" in backend.reasons["a"]
    assert (await refused(backend.start("a"))).cause == Cause.STATE
    killing = backend_of(folder, {"a": SLEEP}, limits=StopLimits(deadline_s=60.0, kill_after_s=0.1))
    await until(killing, "a", BackendState.STOPPED)
    assert not (await killing.processes())["a"]


async def test_records_that_cannot_be_read(folder: Path) -> None:
    """UNKNOWN, never STOPPED; the other members go on; a repaired record is believed again."""
    backend = backend_of(folder, {"a": SLEEP, "b": SLEEP})
    await backend.start("a")
    await backend.start("b")
    await until(backend, "a", BackendState.RUNNING)
    await until(backend, "b", BackendState.RUNNING)
    good = (folder / "a.pid").read_text()
    for bad in ("", "{", "[]", '{"pid": 1}', '{"pid": "x", "ticks": 1, "boot_id": "", "nonce": ""}'):
        (folder / "a.pid").write_text(bad)
        states = await backend.states()
        assert states == {"a": BackendState.UNKNOWN, "b": BackendState.RUNNING}, bad
        assert (await refused(backend.start("a"))).cause in (Cause.STATE, Cause.FAILED)
    (folder / "a.pid").write_text(good)
    assert (await backend.states())["a"] is BackendState.RUNNING


async def test_a_folder_that_was_emptied(folder: Path) -> None:
    """Somebody removed the records of what runs: it is seen, as UNKNOWN, and not started a second time."""
    backend = backend_of(folder, {"a": SLEEP})
    await backend.start("a")
    await until(backend, "a", BackendState.RUNNING)
    for path in list(folder.iterdir()):  # noqa: ASYNC240
        path.unlink()
    again = backend_of(folder, {"a": SLEEP})
    assert (await again.states())["a"] is BackendState.UNKNOWN
    assert "without a record" in again.reasons["a"]
    assert (await refused(again.start("a"))).cause == Cause.STATE
    assert len((await again.processes())["a"]) == 1
