"""Instances as real child processes: started, adopted, stopped, two owners at once, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from process_stage import (
    DEADLINE_S,
    SLEEP,
    backend_of,
    records_of_another,
    refused,
    until,
)

from kvwattd.instances import process_record
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.process import Launch
from kvwattd.instances.process_child import LOCK_PATIENCE_S


async def test_from_start_to_stop(folder: Path) -> None:
    """Started twice it is one process; stopped twice it is gone; others are not touched."""
    backend = backend_of(folder, {"a": SLEEP, "b": SLEEP})
    assert set((await backend.states()).values()) == {BackendState.STOPPED}
    for member in ("a", "a", "b"):
        await backend.start(member)
    await until(backend, "a", BackendState.RUNNING)
    await until(backend, "b", BackendState.RUNNING)
    processes = await backend.processes()
    assert len(processes["a"]) == len(processes["b"]) == 1
    for _ in range(2):
        await backend.stop("a")
    await until(backend, "a", BackendState.STOPPED)
    assert (await backend.processes()) == {"a": frozenset(), "b": processes["b"]}
    assert (await backend.states())["b"] is BackendState.RUNNING


async def test_what_the_process_is_given(folder: Path, tmp_path: Path) -> None:
    """A session, GPUs, placeholders and folder of its own, a log; and none of our talk with systemd."""
    program = (
        "import json, os, sys, signal; print(json.dumps([sys.argv[1:], os.getsid(0) == os.getpid(), "
        "dict(os.environ), os.getcwd(), os.listdir('/proc/self/fd'), "
        "signal.getsignal(signal.SIGPIPE) is not None]), flush=True); import time; time.sleep(1000)"
    )
    asked: list[str] = []

    async def place(member: str) -> Sequence[str]:
        asked.append(member)
        return ("GPU-1", "GPU-2")

    os.environ["NOTIFY_SOCKET"] = "/run/nobody"
    try:
        command = (sys.executable, "-c", program, "{name}", "{gpus}", "{gpu_count}", '{"other": 1}')
        launch = Launch(command, environment={"SOME": "thing"}, folder=tmp_path)
        backend = backend_of(folder, {"a": launch}, place=place)
        await backend.start("a")
        await until(backend, "a", BackendState.RUNNING)
        until_s = time.monotonic() + DEADLINE_S
        while not backend.log("a").read_text():
            assert time.monotonic() < until_s
            await asyncio.sleep(0.01)
    finally:
        del os.environ["NOTIFY_SOCKET"]
    arguments, leads, environment, cwd, descriptors, _ = json.loads(backend.log("a").read_text())
    assert arguments == ["a", "GPU-1,GPU-2", "2", '{"other": 1}']
    assert leads and cwd == str(tmp_path)
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert environment["SOME"] == "thing" and "NOTIFY_SOCKET" not in environment
    assert len(descriptors) <= 5, "input, output, error, the lock, and the listing itself"
    assert asked == ["a"]
    await backend.start("a")
    assert asked == ["a"], "no GPUs are asked for where it runs"


async def test_a_placement_that_is_refused(folder: Path) -> None:
    """Nothing is started on GPUs that are not free, and nothing is left behind."""

    async def place(member: str) -> Sequence[str]:
        raise BackendError(Cause.PLACEMENT, "GPU 0 is foreign")

    backend = backend_of(folder, {"a": SLEEP}, place=place)
    assert (await refused(backend.start("a"))).cause == Cause.PLACEMENT
    assert (await backend.states())["a"] is BackendState.STOPPED


async def test_adopted_by_the_next(folder: Path) -> None:
    """Another backend on the same folder finds it running, does not start it again, and stops it."""
    first = backend_of(folder, {"a": SLEEP})
    await first.start("a")
    await until(first, "a", BackendState.RUNNING)
    await first.close()
    second = backend_of(folder, {"a": SLEEP})
    assert (await second.states())["a"] is BackendState.RUNNING
    await second.start("a")
    assert len((await second.processes())["a"]) == 1
    await second.stop("a")
    await until(second, "a", BackendState.STOPPED)


def _is_sleep(pid: int) -> bool:
    """Whether it has become the member's command."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")


async def test_two_owners_at_once(folder: Path) -> None:
    """Ten backends that all start it, and one that asks again: one process."""
    owners = [backend_of(folder, {"a": SLEEP}) for _ in range(10)]
    outcomes = await asyncio.gather(*(owner.start("a") for owner in owners), return_exceptions=True)
    assert all(isinstance(found, BackendError | None) for found in outcomes), outcomes
    until_s = time.monotonic() + DEADLINE_S
    while (await owners[0].states())["a"] is not BackendState.RUNNING:
        assert time.monotonic() < until_s, owners[0].reasons
        await asyncio.sleep(0.05)  # they may have taken the start from each other until none was left
        with contextlib.suppress(BackendError):
            await owners[0].start("a")
    # Who came second waits for the lock in vain, and ends: it bears the member's mark until then.
    while len((await owners[0].processes())["a"]) > 1:
        assert time.monotonic() < until_s + LOCK_PATIENCE_S, await owners[0].processes()
        await asyncio.sleep(0.05)
    (only,) = (await owners[0].processes())["a"]
    while not _is_sleep(only):  # it says who it is, and becomes the member's command after it
        assert time.monotonic() < until_s, only
        await asyncio.sleep(0.01)
    for owner in owners:
        await owner.states()
        await owner.close()


async def test_a_start_in_the_midst_of_anothers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until the other is over; one that does not come to an end is told, and nothing is started."""
    backend = backend_of(folder, {"a": SLEEP})
    assert (await backend.states())["a"] is BackendState.STOPPED
    records = records_of_another(folder)
    with records.starting():
        monkeypatch.setattr(process_record, "STARTING_PATIENCE_S", 0.05)
        assert "another kvwatt is starting it" in str(await refused(backend.start("a")))
        monkeypatch.undo()
        waiting = asyncio.create_task(backend.start("a"))
        await asyncio.sleep(0.1)
        assert not waiting.done() and not records.processes()
    await waiting
    await until(backend, "a", BackendState.RUNNING)


async def test_refusals(folder: Path) -> None:
    """Names that are no file names, commands that are none, members nobody knows, and sleep."""
    for name in ("", "../a", "a/b", ".a", "a b", "x" * 65):
        with pytest.raises(ValueError, match="accepted"):
            backend_of(folder, {name: SLEEP})
    with pytest.raises(ValueError, match="program"):
        backend_of(folder, {"a": Launch(())})
    backend = backend_of(folder, {"a": SLEEP})
    assert (await refused(backend.start("z"))).cause == Cause.UNKNOWN_MEMBER
    assert (await refused(backend.stop("z"))).cause == Cause.UNKNOWN_MEMBER
    assert (await refused(backend.sleep("a", Withdrawn("a", "test", 0.0)))).cause == Cause.UNSUPPORTED
    assert (await refused(backend.wake("a"))).cause == Cause.UNSUPPORTED
    await backend.start("a")
    assert not stat.S_IMODE(backend.log("a").stat().st_mode) & stat.S_IWOTH
