"""Sleep over real HTTP: against the simulated vLLM server, whole, slow, broken and half-way."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fake_inner import FakeInner

from kvwatt_sim.server.launch import SimServer
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.vllm_sleep import SleepBackend, SleepParams

QUICK = SleepParams(look_s=5.0, sleep_s=10.0, wake_s=10.0)
DEADLINE_S = 90.0


@pytest.fixture(scope="module")
def server() -> Iterator[SimServer]:
    with SimServer(card="l20", sleep_s=0.1, wake_s=0.1, reload_s=0.1) as made:
        yield made


@pytest.fixture(scope="module")
def older() -> Iterator[SimServer]:
    """A version in which a paused server does not say that it sleeps."""
    with SimServer(card="l20", metrics_layout="0.27") as made:
        yield made


@pytest.fixture
async def http(server: SimServer) -> AsyncIterator[httpx.AsyncClient]:
    """The server awake and well before and after."""
    async with httpx.AsyncClient(base_url=server.base_url, timeout=DEADLINE_S) as client:
        await mend(client)
        yield client
        await mend(client)


async def mend(client: httpx.AsyncClient) -> None:
    await client.post("/_sim/sleep", json={})
    await client.post("/_sim/metrics", json={"mode": "ok"})
    await client.post("/wake_up")
    await client.post("/collective_rpc", json={"method": "reload_weights"})


def backend(server: SimServer, params: SleepParams = QUICK) -> SleepBackend:
    return SleepBackend(FakeInner("a"), {"a": server.base_url}, params)


def proof(member: str = "a", at_s: float | None = None) -> Withdrawn:
    return Withdrawn(member, "test", time.monotonic() if at_s is None else at_s)


async def until(of: SleepBackend, *wanted: BackendState) -> list[BackendState]:
    """Every state on the way, each once."""
    seen: list[BackendState] = []
    until_s = time.monotonic() + DEADLINE_S
    while not seen or seen[-1] not in wanted:
        assert time.monotonic() < until_s, (seen, of.reasons)
        state = (await of.states())["a"]
        seen += [] if seen and seen[-1] is state else [state]
        await asyncio.sleep(0.005)
    return seen


async def refused(call: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("level", [1, 2])
async def test_to_sleep_and_back(server: SimServer, http: httpx.AsyncClient, level: int) -> None:
    """Asked twice it is done once; after level 2 the weights are loaded before it counts as awake."""
    one = backend(server, SleepParams(level=level, look_s=5.0))
    assert await until(one, BackendState.RUNNING) == [BackendState.RUNNING]
    for _ in range(2):
        await one.sleep("a", proof())
    assert await until(one, BackendState.ASLEEP) == [BackendState.STOPPING, BackendState.ASLEEP]
    await one.sleep("a", proof())
    assert (await http.get("/_sim/status")).json()["weights_loaded"] == (level == 1)
    for _ in range(2):
        await one.wake("a")
    assert await until(one, BackendState.RUNNING) == [BackendState.STARTING, BackendState.RUNNING]
    assert (await http.get("/_sim/status")).json()["weights_loaded"]
    await one.wake("a")
    assert (await one.states())["a"] is BackendState.RUNNING
    await one.close()


async def test_the_next_kvwatt_finds_it_asleep(server: SimServer, http: httpx.AsyncClient) -> None:
    """Level and sleep are the server's to tell: another backend, configured otherwise, wakes it whole."""
    one = backend(server, SleepParams(level=2))
    await one.sleep("a", proof())
    await until(one, BackendState.ASLEEP)
    await one.close()
    two = backend(server, SleepParams(level=1))
    assert (await two.states())["a"] is BackendState.ASLEEP
    await two.wake("a")
    await until(two, BackendState.RUNNING)
    assert (await http.get("/_sim/status")).json()["weights_loaded"]
    await two.close()


async def test_killed_half_way_through_a_wake_up(server: SimServer, http: httpx.AsyncClient) -> None:
    """Memory is back and the weights are not: it still counts as asleep, and the next wake-up loads them."""
    await http.post("/sleep?level=2")
    await http.post("/wake_up?tags=weights")
    one = backend(server)
    assert (await one.states())["a"] is BackendState.ASLEEP
    await one.wake("a")
    await until(one, BackendState.RUNNING)
    assert (await http.get("/_sim/status")).json()["weights_loaded"]
    await one.close()


async def test_no_sleep_without_the_routers_word(server: SimServer, http: httpx.AsyncClient) -> None:
    """The proof is of this member, and from after it was last taken into service."""
    one = backend(server)
    early = proof()
    assert (await refused(one.sleep("a", proof("b")))).cause == Cause.IN_ROUTER
    await asyncio.sleep(0.01)
    await one.wake("a")
    assert (await refused(one.sleep("a", early))).cause == Cause.IN_ROUTER
    assert not (await http.get("/is_sleeping")).json()["is_sleeping"]
    await one.close()


async def test_no_sleep_and_no_stop_with_requests(server: SimServer, http: httpx.AsyncClient) -> None:
    """Refused while one runs; a page that does not tell is no zero."""
    one = backend(server)
    asking = asyncio.create_task(http.post("/v1/completions", json={"prompt": [1], "max_tokens": 200}))
    until_s = time.monotonic() + DEADLINE_S
    while b"num_requests_running{" not in (page := (await http.get("/metrics")).content) or not any(
        line.startswith(b"vllm:num_requests_running") and line.endswith(b" 1.0") for line in page.split(b"\n")
    ):
        assert time.monotonic() < until_s
    assert (await refused(one.sleep("a", proof()))).cause == Cause.BUSY
    assert (await refused(one.stop("a"))).cause == Cause.BUSY
    assert (await asking).status_code == 200
    for mode in (
        {"mode": "missing", "names": ["vllm:num_requests_waiting"]},
        {"mode": "500"},
        {"mode": "nan"},
    ):
        await http.post("/_sim/metrics", json=mode)
        assert (await refused(one.sleep("a", proof()))).cause == Cause.BUSY, mode
    await http.post("/_sim/metrics", json={"mode": "ok"})
    await one.stop("a")
    assert (await one.states())["a"] is BackendState.STOPPED
    assert (await refused(one.wake("a"))).cause == Cause.STATE
    await one.close()


async def test_stop_anyway(server: SimServer, http: httpx.AsyncClient) -> None:
    """The operator's choice after a drain that took too long lifts the refusal of that one stop, and of no
    sleep."""
    one = backend(server)
    asking = asyncio.create_task(http.post("/v1/completions", json={"prompt": [1], "max_tokens": 100}))
    async with asyncio.timeout(DEADLINE_S):
        while b"num_requests_running{" not in (page := (await http.get("/metrics")).content) or not any(
            line.startswith(b"vllm:num_requests_running") and line.endswith(b" 1.0")
            for line in page.split(b"\n")
        ):
            pass
    assert (await refused(one.stop("a"))).cause == Cause.BUSY
    assert (await refused(one.sleep("a", proof()))).cause == Cause.BUSY
    await one.cut("a")
    assert (await one.states())["a"] in (BackendState.STOPPING, BackendState.STOPPED)
    await asking
    await one.close()


async def test_a_request_that_slips_in(server: SimServer, http: httpx.AsyncClient) -> None:
    """One that comes past the router while the server falls asleep is answered: the server is woken."""
    one = backend(server, SleepParams(look_s=5.0))
    await one.sleep("a", proof())
    asking = asyncio.create_task(http.post("/v1/completions", json={"prompt": [1], "max_tokens": 5}))
    async with asyncio.timeout(DEADLINE_S):
        assert (await asking).status_code == 200
    await until(one, BackendState.RUNNING)
    assert "woken" in one.reasons["a"]
    await one.close()


@pytest.mark.parametrize("fault", ["refused", "half"])
async def test_a_sleep_that_fails_is_undone(server: SimServer, http: httpx.AsyncClient, fault: str) -> None:
    """Whatever the server had done: it ends awake, answers requests, and the reason is told."""
    one = backend(server)
    await http.post("/_sim/sleep", json={"sleep": fault})
    await one.sleep("a", proof())
    await until(one, BackendState.RUNNING)
    assert "its sleep failed" in one.reasons["a"]
    answer = await http.post("/v1/completions", json={"prompt": [1], "max_tokens": 2})
    assert answer.status_code == 200
    await one.close()


async def test_a_sleep_whose_answer_is_lost(server: SimServer, http: httpx.AsyncClient) -> None:
    """It sleeps: that is what was asked."""
    one = backend(server)
    await http.post("/_sim/sleep", json={"sleep": "lost"})
    await one.sleep("a", proof())
    await until(one, BackendState.ASLEEP)
    assert not one.reasons
    await one.close()


@pytest.mark.parametrize("version", ["server", "older"])
async def test_it_cannot_be_woken(version: str, request: pytest.FixtureRequest) -> None:
    """FAILED with both reasons, never RUNNING; when the server has recovered a wake-up helps."""
    server: SimServer = request.getfixturevalue(version)
    one = backend(server)
    http = httpx.AsyncClient(base_url=server.base_url, timeout=DEADLINE_S)
    await http.post("/_sim/sleep", json={"sleep": "half", "wake_up": "refused"})
    await one.sleep("a", proof())
    await until(one, BackendState.FAILED)
    assert "its sleep failed" in one.reasons["a"] and "cannot be woken" in one.reasons["a"]
    two = backend(server)
    seen = (await two.states())["a"]
    assert seen in (BackendState.FAILED, BackendState.ASLEEP), "held requests are seen by the next kvwatt too"
    await http.post("/_sim/sleep", json={})
    await one.wake("a")
    await until(one, BackendState.RUNNING)
    assert (await two.states())["a"] is BackendState.RUNNING
    await one.close()
    await two.close()
    await http.aclose()


async def test_weights_that_do_not_come(server: SimServer, http: httpx.AsyncClient) -> None:
    """After level 2 a server without weights never counts as awake."""
    one = backend(server, SleepParams(level=2))
    await one.sleep("a", proof())
    await until(one, BackendState.ASLEEP)
    await http.post("/_sim/sleep", json={"reload_weights": "refused"})
    await one.wake("a")
    seen = await until(one, BackendState.FAILED)
    assert BackendState.RUNNING not in seen
    assert (await http.get("/is_sleeping")).json()["is_sleeping"]
    await one.close()


async def test_nothing_is_asked_after_a_stop(server: SimServer, http: httpx.AsyncClient) -> None:
    """vLLM that shuts down never ends where it is asked; a stop that is refused changes nothing."""
    inner = FakeInner("a")
    one = SleepBackend(inner, {"a": server.base_url}, QUICK)
    await one.stop("a")
    inner.found["a"] = BackendState.RUNNING  # it takes its time
    await http.post("/_sim/sleep", json={"sleep": "hang"})
    asking = asyncio.create_task(http.post("/sleep"))  # whoever asked now would get no answer
    await asyncio.sleep(0.1)
    assert (await one.states())["a"] is BackendState.STOPPING
    await http.post("/_sim/sleep", json={})
    await asking
    await http.post("/wake_up")
    inner.fail_stop = True
    two = SleepBackend(inner, {"a": server.base_url}, QUICK)
    assert (await refused(two.stop("a"))).cause == Cause.FORBIDDEN
    assert (await two.states())["a"] is BackendState.RUNNING
    await one.close()
    await two.close()


async def test_what_cannot_be_asked(server: SimServer, http: httpx.AsyncClient) -> None:
    """Silent: UNKNOWN. Not listening yet: RUNNING, for nothing can hang there. Not run: the inner's state."""
    inner = FakeInner("a", "silent", "loading", "down")
    inner.found["down"] = BackendState.STOPPED
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as loading:
        loading.bind(("127.0.0.1", 0))
        servers = {
            "a": server.base_url,
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "loading": f"http://127.0.0.1:{loading.getsockname()[1]}",
            "down": "http://127.0.0.1:9",
        }
        one = SleepBackend(inner, servers, SleepParams(look_s=1.0))
        assert await one.states() == {
            "a": BackendState.RUNNING,
            "silent": BackendState.UNKNOWN,
            "loading": BackendState.RUNNING,
            "down": BackendState.STOPPED,
        }
        assert "silent" in one.reasons and "loading" not in one.reasons
        assert (await refused(one.sleep("silent", proof("silent")))).cause == Cause.DEADLINE
        assert (await refused(one.sleep("z", proof("z")))).cause == Cause.UNKNOWN_MEMBER
        await one.close()
    assert ("close", "") in inner.asked


async def test_a_server_without_sleep_mode() -> None:
    """It runs, and a sleep is refused with what is missing."""
    with SimServer(card="l20", no_dev_mode=True) as server:
        one = backend(server)
        assert (await one.states())["a"] is BackendState.RUNNING
        error = await refused(one.sleep("a", proof()))
        assert error.cause == Cause.UNSUPPORTED and "no sleep mode" in error.detail
        await one.close()


def test_levels() -> None:
    """Only 1 and 2."""
    with pytest.raises(ValueError, match="1 or 2"):
        SleepBackend(FakeInner(), {}, SleepParams(level=0))
