"""The scaler's edges: lists over HTTP, hooks as real commands, the probe, the journal on disk."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_turns import turns
from virtual_time import run_virtual

from kvwatt.pool import MemberStatus
from kvwattd.instances.hooks import HookSettings, HooksRouter
from kvwattd.instances.http_sd import HttpSdRouter, listed, plain, prometheus_sd
from kvwattd.instances.journal import Entry, Journal
from kvwattd.instances.probe import Look
from kvwattd.instances.probe_http import HttpProbe
from kvwattd.instances.router import NoRouter, RouterError
from kvwattd.instances.scaler_journal import kept, taken_up
from kvwattd.instances.scaler_record import Goal, Record

PAGE = """\
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


def test_the_lists_show_who_is_in_service() -> None:
    """Prometheus HTTP SD and plain JSON, in the order of the configuration."""
    kinds = {"b": "tp1", "a": "tp2", "c": "tp1"}
    urls = {name: f"http://10.0.0.1:80{i}" for i, name in enumerate(kinds)}
    rows = listed(frozenset({"a", "b"}), kinds, urls)
    groups = json.loads(json.dumps(prometheus_sd(rows)))
    assert [group["targets"] for group in groups] == [["10.0.0.1:800"], ["10.0.0.1:801"]]
    assert groups[1]["labels"]["__meta_kvwatt_instance"] == "a"
    assert groups[1]["labels"]["__meta_kvwatt_kind"] == "tp2"
    assert [row["name"] for row in plain(rows)["instances"]] == ["b", "a"]  # type: ignore[attr-defined]


def test_a_withdrawal_from_the_list_waits_for_its_readers() -> None:
    """Confirmed after settle_s, also when the first call was given up; no list before an admission."""

    async def run() -> None:
        now = asyncio.get_running_loop().time
        router = HttpSdRouter(10.0, now)
        assert await router.admitted() == frozenset()
        assert router.listing() is None
        await router.admit("a")
        await router.admit("b")
        assert await router.admitted() == {"a", "b"}
        assert router.listing() == {"a", "b"}
        start_s = now()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4.0):
                await router.withdraw("a")
        assert router.listing() == {"b"}
        await router.withdraw("a")
        assert now() - start_s == pytest.approx(10.0, abs=0.1)
        await router.withdraw("a")
        assert now() - start_s == pytest.approx(10.0, abs=0.1)
        await router.admit("a")
        await router.withdraw("b")
        assert router.listing() == {"a"}

    run_virtual(run())


def _hooks(tmp_path: Path, **more: object) -> HooksRouter:
    script = tmp_path / "hook.sh"
    script.write_text('echo "$1 $2" >> "$(dirname "$0")/calls"; test "$2" != bad; exit $?\n')
    command = ("/bin/sh", str(script))
    given = {"admit": (*command, "admit", "{member}"), "withdraw": (*command, "withdraw", "{member}")} | more
    return HooksRouter(HookSettings(**given))  # type: ignore[arg-type]


async def test_hooks_are_commands(tmp_path: Path) -> None:
    """Run with the member's name; anything but 0 is not a confirmation."""
    router = _hooks(tmp_path)
    await router.admit("a;b $(x)")
    await router.withdraw("b")
    assert (tmp_path / "calls").read_text() == "admit a;b $(x)\nwithdraw b\n"
    with pytest.raises(RouterError, match="refused"):
        await router.withdraw("bad")
    assert await router.sessions("a") is None
    assert router.counts_sessions is False
    assert await router.admitted() is None


async def test_hooks_have_a_deadline(tmp_path: Path) -> None:
    """One that hangs is killed with what it started; one that is not there is told."""
    hang = ("/bin/sh", "-c", "sleep 61 & echo {member}; sleep 61")
    router = _hooks(tmp_path, withdraw=hang, timeout_s=0.3, admit=("/no/such/program", "{member}"))
    start_s = time.monotonic()
    with pytest.raises(RouterError, match="deadline"):
        await router.withdraw("a")
    assert time.monotonic() - start_s < 20
    with pytest.raises(RouterError, match="unreachable"):
        await router.admit("a")
    with pytest.raises(ValueError, match=r"hooks\.admit"):
        HookSettings(admit=["true"], withdraw=["true", "{member}"])


async def test_hooks_count_sessions(tmp_path: Path) -> None:
    router = _hooks(tmp_path, sessions=("/bin/echo", "3"))
    assert router.counts_sessions is True
    assert await router.sessions("a") == 3
    with pytest.raises(RouterError, match="malformed"):
        await _hooks(tmp_path, sessions=("/bin/echo", "{member}")).sessions("a")


async def test_without_a_router_nothing_is_withdrawn() -> None:
    router = NoRouter()
    await router.admit("a")
    with pytest.raises(RouterError, match="no router"):
        await router.withdraw("a")


@asynccontextmanager
async def engine(answers: Mapping[str, tuple[int, str]], delay_s: float = 0.0) -> AsyncIterator[str]:
    """Answers each path as told, `/slow` ones late."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        status, body = answers.get(path, (404, "{}"))
        if path == "/is_sleeping":
            await asyncio.sleep(delay_s)
        head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.sleep(delay_s)
        await turns()
    await turns()


GOOD = {"/health": (200, ""), "/is_sleeping": (200, '{"is_sleeping": false}'), "/metrics": (200, PAGE)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Look(True, False, 3, 4, 0.5)),
        ({"/is_sleeping": (200, '{"is_sleeping": true}')}, Look(True, True, 3, 4, 0.5)),
        ({"/is_sleeping": (404, "{}")}, Look(True, False, 3, 4, 0.5)),
        ({"/is_sleeping": (500, "")}, Look(True, None, 3, 4, 0.5)),
        ({"/is_sleeping": (200, "[]")}, Look(True, None, 3, 4, 0.5)),
        ({"/is_sleeping": (200, "no json")}, Look(True, None, 3, 4, 0.5)),
        ({"/metrics": (200, PAGE.replace("requests_waiting", "requests_queued"))}, Look(True, False)),
        ({"/metrics": (200, PAGE.replace("4.0", "NaN"))}, Look(True, False)),
        ({"/metrics": (200, "")}, Look(True, False)),
        ({"/metrics": (500, "")}, Look(True, False)),
        ({"/health": (503, "")}, Look(False)),
    ],
)
async def test_a_look_says_what_it_cannot_see(change: dict[str, tuple[int, str]], expected: Look) -> None:
    """What is missing or nonsense is None, never zero and never awake."""
    async with engine(GOOD | change) as url:
        probe = HttpProbe({"a": url}, look_s=20.0)
        assert await probe.look("a") == expected
        await probe.close()


async def test_a_look_has_a_deadline() -> None:
    """A server that is silent on sleep while weights move still tells its load."""
    async with engine(GOOD, delay_s=3.0) as url:
        probe = HttpProbe({"a": url, "b": "http://127.0.0.1:9"}, look_s=1.0)
        assert await probe.look("a") == Look(True, None, 3, 4, 0.5)
        assert await probe.look("b") == Look(False, gone=True)
        assert await probe.load("b") is None
        await probe.close()


async def test_a_warm_up_is_one_answered_request() -> None:
    good = {"/v1/models": (200, '{"data": [{"id": "m"}]}'), "/v1/completions": (200, '{"choices": [{}]}')}
    async with engine(good) as url:
        probe = HttpProbe({"a": url})
        assert await probe.warm_up("a")
        await probe.close()
    async with engine(good | {"/v1/completions": (500, "")}) as url:
        probe = HttpProbe({"a": url})
        assert not await probe.warm_up("a")
        await probe.close()


ENTRIES = st.builds(
    Entry,
    goal=st.sampled_from(Goal),
    since_unix_s=st.integers(0, 2**31).map(float),
    origin=st.sampled_from(["stopped", "asleep", None]),
    served=st.booleans(),
    ending=st.booleans(),
    force=st.booleans(),
    failed_unix_s=st.none() | st.integers(0, 2**31).map(float),
)


@given(entry=ENTRIES, now_s=st.floats(0, 1e6))
def test_what_was_intended_survives_a_restart(entry: Entry, now_s: float) -> None:
    """Taken up and kept again it is the same, whatever the monotonic clock of the new boot says."""
    record = Record("a", "tp1")
    unix_s = 2.0**31 + 10
    taken_up(record, entry, now_s, unix_s)
    again = kept(record, unix_s - now_s)
    if entry.goal is Goal.REST and entry.failed_unix_s is None:
        assert again is None
    else:
        assert again == entry


async def test_the_journal_is_all_or_nothing(tmp_path: Path) -> None:
    """Read back as written; a damaged one or a full disk is an alarm and no more."""
    path = tmp_path / "instances.json"
    entry = Entry(goal=Goal.SLEEP, since_unix_s=1.0)
    journal = Journal(path)
    await journal.write(lambda: {"a": entry})
    assert await Journal(path).read() == {"a": entry}
    path.write_text(path.read_text()[:20])
    damaged = Journal(path)
    assert await damaged.read() == {}
    assert damaged.errors == 1
    nowhere = Journal(tmp_path / "none" / "instances.json")
    await nowhere.write(lambda: {"a": entry})
    assert nowhere.errors == 1
    assert nowhere.last_error is not None
    (tmp_path / "none").mkdir()
    await nowhere.write(lambda: {"a": entry})
    assert nowhere.last_error is None
    assert await Journal(tmp_path / "none" / "instances.json").read() == {"a": entry}


def test_a_record_of_before_the_restart_has_its_status() -> None:
    record = Record("a", "tp1")
    taken_up(record, Entry(goal=Goal.STOP, since_unix_s=90.0, served=True), 50.0, 100.0)
    assert record.status is MemberStatus.DRAINING
    assert record.goal_since_s == 40.0
