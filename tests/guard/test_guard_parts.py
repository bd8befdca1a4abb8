"""The guard's parts by themselves: lease, worker, record, configuration, systemd notification."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from guard_stage import UUIDS
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwattd import sdnotify
from kvwattd.guard.config import ConfigError, build, load, parse_flags, with_file
from kvwattd.guard.lease import Lease
from kvwattd.guard.protocol import Code, GuardError
from kvwattd.guard.statefile import StateFile, StateFileError
from kvwattd.guard.worker import MAX_ABANDONED, CallTimeoutError, DeadlineWorker


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "renew", "command", "release", "look"]), st.integers(1, 2),
                  st.floats(0.0, 3.0)),
        max_size=40,
    )
)  # fmt: skip
def test_lease_laws(steps: list[tuple[str, int, float]]) -> None:
    """At most one holder; what is set never outlives the lease; only the holder extends it."""
    lease, now_s, extended_s = Lease(2.0), 0.0, 0.0
    for step, connection, wait_s in steps:
        now_s += wait_s
        if lease.expire(now_s, clocks_set=True):
            assert now_s - extended_s >= 0.9 * 2.0 - 1e-9  # sums of floats
        before = lease.holder
        try:
            if step == "release":
                assert lease.release(connection) == (before == connection)
            elif step != "look":
                getattr(lease, step)(connection, now_s)
                assert lease.holder == connection
                extended_s = now_s
        except GuardError as error:
            assert lease.holder == before
            assert error.code in (Code.BUSY, Code.NOT_CONTROLLER, Code.LEASE_EXPIRED)
        remaining_s = lease.remaining_s(now_s)
        assert remaining_s is None or 0.0 <= remaining_s <= 2.0


def test_lease_expires_once_and_early() -> None:
    """Expiry is told once, a tenth before the lease's end, and only when there is something to reset."""
    lease = Lease(2.0)
    lease.take(1, 0.0)
    assert not lease.expire(1.7, clocks_set=True)
    assert not lease.expire(1.9, clocks_set=False)
    assert lease.expire(1.9, clocks_set=True)
    assert not lease.expire(2.5, clocks_set=True)
    with pytest.raises(GuardError, match="clocks were reset"):
        lease.renew(1, 3.0)
    lease.command(1, 3.0)
    lease.renew(1, 3.1)


def test_overdue_holder_is_displaced() -> None:
    """A controller that no longer renews loses its place to one that asks for it."""
    lease = Lease(2.0)
    lease.take(1, 0.0)
    with pytest.raises(GuardError, match="another controller"):
        lease.take(2, 1.0)
    lease.take(2, 2.0)
    with pytest.raises(GuardError, match="does not control"):
        lease.renew(1, 2.1)


async def test_worker_keeps_order_and_errors() -> None:
    """Calls run in order, one at a time; what they raise reaches the caller."""
    worker, seen = DeadlineWorker("test"), []

    def note(number: int) -> int:
        seen.append(number)
        return number

    results = await asyncio.gather(*(worker.call(lambda n=n: note(n), 5.0) for n in range(20)))  # type: ignore[misc]
    assert results == seen == list(range(20))
    with pytest.raises(ZeroDivisionError):
        await worker.call(lambda: 1 // 0, 5.0)
    worker.close()


async def test_worker_abandons_a_hung_call() -> None:
    """A hung call costs its deadline; later calls run; what waited behind it in vain never runs."""
    worker, release, ran = DeadlineWorker("test"), threading.Event(), []
    late = asyncio.Event()
    hung = asyncio.ensure_future(worker.call(lambda: release.wait(30), 0.2, on_late=late.set))
    await asyncio.sleep(0)
    with pytest.raises(CallTimeoutError) as dropped:
        await worker.call(lambda: ran.append("behind"), 0.05)
    assert not dropped.value.started
    with pytest.raises(CallTimeoutError) as stuck:
        await hung
    assert stuck.value.started
    assert worker.hung_calls == 1
    assert await worker.call(lambda: 7, 5.0) == 7
    release.set()
    await asyncio.wait_for(late.wait(), 30)
    assert worker.hung_calls == 0
    assert ran == []
    worker.close()


async def test_a_loop_that_stood_still_takes_what_came_in_time() -> None:
    """An answer that was there before anybody could look is no late one, though the deadline has passed."""
    worker, answered = DeadlineWorker("test"), threading.Event()
    call = asyncio.ensure_future(worker.call(answered.set, 0.2))
    await asyncio.sleep(0)
    assert answered.wait(60)
    time.sleep(0.5)  # noqa: ASYNC251  # the stall
    await call
    assert worker.hung_calls == 0
    worker.close()


async def test_worker_abandons_only_so_many() -> None:
    """With the allowed number of threads hanging, further calls are refused until one comes back."""
    worker, release, back = DeadlineWorker("test"), threading.Event(), asyncio.Event()
    for _ in range(MAX_ABANDONED):
        with pytest.raises(CallTimeoutError):
            await worker.call(lambda: release.wait(30), 0.05, on_late=back.set)
    with pytest.raises(CallTimeoutError, match=f"{MAX_ABANDONED} calls hang") as refused:
        await worker.call(lambda: None, 5.0)
    assert not refused.value.started
    release.set()
    await asyncio.wait_for(back.wait(), 30)
    await worker.call(lambda: None, 5.0)
    worker.close()


def test_record_round_trip(tmp_path: Path) -> None:
    """What was saved is loaded; nothing saved is nothing recorded; no temporary file stays."""
    state = StateFile(tmp_path / "state.json")
    assert state.load() == frozenset()
    state.save(UUIDS[:2])
    assert state.load() == frozenset(UUIDS[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"gpus": 1}', '{"gpus": ["a"', "x" * 100_000])
def test_record_that_makes_no_sense(tmp_path: Path, content: str) -> None:
    """A record that cannot be read is an error, never an empty record."""
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(StateFileError, match="not a record"):
        StateFile(tmp_path / "state.json").load()


def test_one_guard_per_record(tmp_path: Path) -> None:
    """A second guard on the same record is refused."""
    first, second = StateFile(tmp_path / "state.json"), StateFile(tmp_path / "state.json")
    first.lock()
    with pytest.raises(StateFileError, match="another guard"):
        second.lock()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gpus", []),
        ("gpus", ["0"]),
        ("gpus", [UUIDS[0], UUIDS[0]]),
        ("gpus", "GPU-1"),
        ("gpus", ["MIG-1"]),
        ("min_mhz", 0),
        ("min_mhz", 3000),
        ("min_mhz", 300.5),
        ("max_mhz", 100_000),
        ("max_mhz", True),
        ("lease_s", 0.0),
        ("lease_s", float("nan")),
        ("lease_s", "2"),
        ("nvml_deadline_s", 3.0),
        ("socket", "guard.sock"),
        ("socket", "/" + "x" * 120),
        ("state_file", 7),
        ("socket_mode", "0666"),
        ("socket_mode", "rw"),
        ("gpus", ["GPU-../../etc"]),
        ("hold_off_s", 0.0),
        ("users", "root"),
        ("users", ["nobody-of-that-name"]),
        ("groups", ["no-group-of-that-name"]),
        ("lock_dir", "locks"),
    ],
)
def test_config_refusals(key: str, value: object) -> None:
    """A value that is not accepted is refused by name, with what is."""
    values: dict[str, object] = {"gpus": [UUIDS[0]], "max_mhz": 2000, key: value}
    with pytest.raises(ConfigError, match=rf"^(?:{key}|max_mhz) = .*(?:expected|no such name)"):
        build(values)


def test_config_file_and_flags(tmp_path: Path) -> None:
    """Flags override the file; unknown keys and broken files are refused."""
    path = tmp_path / "guard.toml"
    path.write_text(f'gpus = ["{UUIDS[0]}"]\nmin_mhz = 300\nlease_s = 1\nsocket_mode = "0660"\n')
    config = build(with_file(*parse_flags(["--config", str(path), "--min-mhz", "600"])))
    assert (config.min_mhz, config.lease_s, config.socket_mode) == (600, 1.0, 0o660)
    path.write_text("leese_s = 1\n")
    with pytest.raises(ConfigError, match="leese_s = 1: unknown key"):
        load(path)
    path.write_text("lease_s = \n")
    with pytest.raises(ConfigError, match=r"guard\.toml"):
        load(path)


def test_sd_notify(tmp_path: Path) -> None:
    """A notification is one datagram to systemd's socket; without systemd nothing is sent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        assert sdnotify.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(64) == b"READY=1"
    assert not sdnotify.notify("READY=1", {})


def test_watchdog_interval() -> None:
    """The watchdog is fed twice per period, and only when it is ours."""
    assert sdnotify.watchdog_interval_s({"WATCHDOG_USEC": "3000000"}) == 1.5
    assert sdnotify.watchdog_interval_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}) == 1.5
    assert sdnotify.watchdog_interval_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}) is None
    for text in ("", "0", "soon", "-5"):
        assert sdnotify.watchdog_interval_s({"WATCHDOG_USEC": text}) is None


def test_record_is_json(tmp_path: Path) -> None:
    """The record names the GPUs in plain JSON, for the operator to read."""
    StateFile(tmp_path / "state.json").save(UUIDS[:1])
    assert json.loads((tmp_path / "state.json").read_text())["gpus"] == UUIDS[:1]
