"""Instances as real child processes: started, adopted, stopped, failing in every way a process can."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvwattd.instances import process_record
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.process import Launch, ProcessBackend
from kvwattd.instances.process_child import LOCK_PATIENCE_S
from kvwattd.instances.process_record import Records
from kvwattd.instances.process_state import StopLimits

DEADLINE_S = 90.0
SLEEP = Launch(("sleep", "1000"))
# A server that hangs.
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(999)
"""
# A server whose worker outlives it.
PARENT = "import subprocess, sys; subprocess.Popen(['sleep', '1000']); sys.exit(3)"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Nothing of it is left running, whatever a test did."""
    yield tmp_path / "instances"
    for member in ("a", "b"):
        for pid in Records((tmp_path / "instances").resolve(), member).processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def records_of_another(folder: Path) -> Records:
    """The records as another kvwatt of the same host has them."""
    folder.mkdir(parents=True, exist_ok=True)
    return Records(folder.resolve(), "a")


def backend_of(folder: Path, members: Mapping[str, Launch], **more: Any) -> ProcessBackend:
    """A kvwatt whose disk may be busy with other tests."""
    return ProcessBackend(folder, members, deadline_s=DEADLINE_S, **more)


async def until(backend: ProcessBackend, member: str, wanted: BackendState) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while (state := (await backend.states())[member]) is not wanted:
        assert time.monotonic() < until_s, (state, wanted, backend.reasons)
        await asyncio.sleep(0.005)


async def refused(call: object) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def python(program: str) -> Launch:
    return Launch((sys.executable, "-c", program))


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
    await backend.start("a")
    await until(backend, "a", BackendState.RUNNING)
    (pid,) = (await backend.processes())["a"]
    os.kill(pid, signal.SIGKILL)
    await until(backend, "a", BackendState.FAILED)
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
    await backend.start("a")
    await until(backend, "a", BackendState.RUNNING)
    (pid,) = (await backend.processes())["a"]
    os.kill(pid, signal.SIGKILL)
    await until(backend, "a", BackendState.FAILED)
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
