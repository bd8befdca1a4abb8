"""The HAProxy router against a real HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from haproxy_process import PATIENCE_S, Haproxy, find
from tiny_engine import TinyEngine

from kvwattd.instances.haproxy import HaproxyRouter, HaproxySettings
from kvwattd.instances.router import RouterError


class Scene:
    """Two engines behind one HAProxy."""

    def __init__(self, proxy: Haproxy, a: TinyEngine, b: TinyEngine, router: HaproxyRouter) -> None:
        self.proxy, self.a, self.b, self.router = proxy, a, b, router
        self.http = httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S)

    async def post(self) -> str:
        return (await self.http.post(self.proxy.url, content=b"x")).raise_for_status().text

    async def names(self, count: int = 8) -> set[str]:
        return {await self.post() for _ in range(count)}


@asynccontextmanager
async def scene(folder: Path, **options: object) -> AsyncIterator[Scene]:
    async with TinyEngine("a") as a, TinyEngine("b") as b:
        proxy = Haproxy(folder, {"sa": a.port, "sb": b.port}, **options)  # type: ignore[arg-type]
        await asyncio.to_thread(proxy.start)
        masters = [proxy.master_socket] if options.get("master") else []
        sockets = [] if masters else [proxy.socket]
        settings = HaproxySettings(sockets, "vllm", {"a": "sa", "b": "sb"}, masters, PATIENCE_S)
        found = Scene(proxy, a, b, HaproxyRouter(settings))
        try:
            yield found
        finally:
            await found.http.aclose()
            await asyncio.to_thread(proxy.close)


async def eventually(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # the state is another process's
            await asyncio.sleep(0.02)
    assert holds(), what


async def test_servers_serve_once_admitted(tmp_path: Path) -> None:
    """`disabled` in the configuration: nobody serves before he is admitted, and only who is."""
    async with scene(tmp_path) as s:
        assert await s.router.admitted() == frozenset()
        assert (await s.http.post(s.proxy.url, content=b"x")).status_code == 503
        await s.router.admit("a")
        assert await s.router.admitted() == {"a"}
        assert await s.names() == {"a"}
        await s.router.admit("b")
        await s.router.admit("b")
        assert await s.names() == {"a", "b"}


@pytest.mark.parametrize("options", ["", "on-marked-down shutdown-sessions"])
@pytest.mark.parametrize("threads", [1, 2])
async def test_what_runs_is_finished(tmp_path: Path, options: str, threads: int) -> None:
    """A withdrawn server finishes what it has, gets nothing new, and is in maintenance once it is empty."""
    async with scene(tmp_path, server_options=options, threads=threads) as s:
        await s.router.admit("a")
        s.a.go.clear()
        running = [asyncio.create_task(s.post()) for _ in range(3)]
        await eventually(lambda: s.a.running == 3, "requests run")
        await s.router.admit("b")
        assert await s.router.sessions("a") == 3
        await s.router.withdraw("a")
        assert await s.router.admitted() == {"b"}
        assert await s.names() == {"b"}
        s.a.go.set()
        assert await asyncio.gather(*running) == ["a"] * 3
        async with asyncio.timeout(PATIENCE_S):
            while await s.router.sessions("a"):  # noqa: ASYNC110  # the client may have its answer sooner
                await asyncio.sleep(0.02)
        await s.router.withdraw("a")
        assert "MAINT" in s.proxy.command("show stat vllm 4 -1")
        assert s.a.got == 3


async def test_what_waits_in_haproxy_goes_elsewhere(tmp_path: Path) -> None:
    """Requests that wait for a slot of a full server are not its own: they go to whoever is in service."""
    async with scene(tmp_path, server_options="maxconn 1") as s:
        await s.router.admit("a")
        s.a.go.clear()
        running = [asyncio.create_task(s.post()) for _ in range(3)]
        await eventually(lambda: s.a.running == 1, "one runs")
        await s.router.admit("b")
        await s.router.withdraw("a")
        await eventually(lambda: s.b.got == 2, "those that waited go elsewhere")
        s.a.go.set()
        assert sorted(await asyncio.gather(*running)) == ["a", "b", "b"]


async def test_an_engine_that_sleeps_fails_its_health_check(tmp_path: Path) -> None:
    """The second net: the example's check takes a sleeping engine out though it was never withdrawn."""
    async with scene(tmp_path, check="100ms") as s:
        await s.router.admit("a")
        await s.router.admit("b")
        s.a.asleep = True
        await eventually(lambda: "DOWN" in s.proxy.command("show stat vllm 4 -1"), "DOWN")
        assert await s.names() == {"b"}
        s.a.asleep = False
        await eventually(lambda: "DOWN" not in s.proxy.command("show stat vllm 4 -1"), "up again")


async def test_shares_follow_the_weights(tmp_path: Path) -> None:
    """A server of a quarter of the weight holds about a quarter as many; a restart loses the weights too."""
    async with scene(tmp_path) as s:
        for member in "ab":
            await s.router.admit(member)
        await s.router.weigh({"a": 256, "b": 64})
        s.a.go.clear()
        s.b.go.clear()
        running = [asyncio.create_task(s.post()) for _ in range(20)]
        await eventually(lambda: s.a.running + s.b.running == 20, "all run")
        assert 14 <= s.a.running <= 18
        s.a.go.set()
        s.b.go.set()
        await asyncio.gather(*running)
        await asyncio.to_thread(s.proxy.kill)
        with pytest.raises(RouterError):
            await s.router.weigh({"a": 256, "b": 64})
        await asyncio.to_thread(s.proxy.start)
        await s.router.weigh({"a": 256, "b": 64})
        found = [line.split()[7] for line in s.proxy.command("show servers state vllm").splitlines()[2:4]]
        assert found == ["256", "64"]


async def test_a_restart_loses_the_state(tmp_path: Path) -> None:
    """SIGKILL and start: out of reach meanwhile, then everybody is out, as the configuration says."""
    async with scene(tmp_path) as s:
        await s.router.admit("a")
        await asyncio.to_thread(s.proxy.kill)
        assert await s.router.admitted() is None
        with pytest.raises(RouterError, match="unreachable"):
            await s.router.withdraw("a")
        await asyncio.to_thread(s.proxy.start)
        assert await s.router.admitted() == frozenset()
        await s.router.admit("a")
        assert await s.names(2) == {"a"}


async def test_a_withdrawal_waits_for_the_workers_of_before_a_reload(tmp_path: Path) -> None:
    """They take no orders any more: confirmed only when they have ended. The new one is told at once."""
    async with scene(tmp_path, master=True) as s:
        await s.router.admit("a")
        s.a.go.clear()
        running = asyncio.create_task(s.post())
        await eventually(lambda: s.a.running == 1, "one runs")
        await asyncio.to_thread(s.proxy.reload)
        while (admitted := await s.router.admitted()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the master starts anew too
        assert admitted == frozenset()  # in the new worker, as configured
        assert await s.router.sessions("a") == 1
        await s.router.admit("a")
        await s.router.admit("b")
        with pytest.raises(RouterError, match="before a reload"):
            await s.router.withdraw("a")
        assert await s.router.admitted() == {"b"}
        assert await s.names(3) == {"b"}
        s.a.go.set()
        assert await running == "a"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(RouterError):
                    await s.router.withdraw("a")
                    break
                await asyncio.sleep(0.05)
        await s.router.withdraw("a")


async def test_two_haproxys_are_told_the_same(tmp_path: Path) -> None:
    """In service in one of them only: ordered again, whichever way it was meant."""
    async with scene(tmp_path / "1") as s, scene(tmp_path / "2") as other:
        sockets, servers = [s.proxy.socket, other.proxy.socket], {"a": "sa", "b": "sb"}
        both = HaproxySettings(sockets, "vllm", servers, timeout_s=PATIENCE_S)
        router = HaproxyRouter(both)
        await router.admit("a")
        assert await s.router.admitted() == await other.router.admitted() == {"a"}
        await other.router.withdraw("a")
        assert await router.admitted() == frozenset()  # meant to be in: told as out
        await router.withdraw("a")
        await other.router.admit("a")
        assert await router.admitted() == {"a"}  # meant to be out: told as in
        await asyncio.to_thread(other.proxy.kill)
        with pytest.raises(RouterError, match="unreachable"):
            await router.withdraw("a")
        assert await router.admitted() is None


async def test_names_and_permissions_are_told(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        with pytest.raises(RouterError, match="unknown-member"):
            await s.router.admit("c")
        wrong = HaproxyRouter(HaproxySettings([s.proxy.socket], "nothing", {"a": "sa"}))
        with pytest.raises(RouterError, match="unknown-member"):
            await wrong.withdraw("a")
        assert await wrong.admitted() is None
        gone = HaproxyRouter(HaproxySettings([s.proxy.socket], "vllm", {"a": "sx"}))
        with pytest.raises(RouterError, match="no server 'sx'"):
            await gone.withdraw("a")
    with pytest.raises(ValueError, match="no name of a backend"):
        HaproxySettings([tmp_path], "vllm; set", {})


def test_the_shipped_configuration_is_accepted(tmp_path: Path) -> None:
    """`haproxy -c`, with the group left out that only an installation has."""
    shipped = Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
    ours = tmp_path / "haproxy.cfg"
    ours.write_text(shipped.read_text().replace("group kvwatt ", "").replace("/run/haproxy", str(tmp_path)))
    program, environment = find()
    command = [program, "-c", "-f", str(ours)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "WARNING" not in told.stderr + told.stdout
