"""The server lives inside the daemon's loop: bound port, bounded stop, hands off the signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import httpx
import pytest
from fake_plane import FakePlane
from fastapi import FastAPI
from token_files import opened

from kvwattd.api.app import create_app
from kvwattd.api.listeners import ApiUnavailable, bind
from kvwattd.api.server import PLACES, ApiServer, Endpoints


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.get(url)


async def test_port_zero_reports_the_bound_port() -> None:
    """With port 0 the server takes a free port, tells it, and answers on loopback."""
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints())
    await server.start()
    try:
        url = f"{server.url}/healthz"
        assert server.port > 0
        assert (await get(url)).status_code == 200
    finally:
        await server.stop()
    with pytest.raises(httpx.ConnectError):
        await get(url)


async def test_signal_handlers_are_left_alone() -> None:
    """Starting and stopping the server changes no signal handler."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints())
    await server.start()
    during = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    await server.stop()
    assert before == during == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Accepted connections have Nagle's algorithm off: with it each answer comes 40 ms late."""
    with bind("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()):
            listener.setblocking(True)
            accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_busy_port_is_refused_with_what_to_do() -> None:
    """A port in use is an error that names it and what is accepted; the process lives on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ApiServer(FastAPI(), Endpoints(port=port))
        with pytest.raises(ApiUnavailable, match=rf"{port}.*free port at api\.host and api\.port"):
            await server.start()
        await server.stop()


async def test_address_of_another_host_is_refused() -> None:
    """An address that this host does not have is named."""
    with pytest.raises(ApiUnavailable, match=r"192\.0\.2\.1"):
        await ApiServer(FastAPI(), Endpoints("192.0.2.1")).start()


async def test_stop_ends_although_a_call_hangs() -> None:
    """A handler that never answers cannot hold up the daemon's exit."""
    app, entered = FastAPI(), asyncio.Event()

    @app.get("/hang")
    async def hang() -> None:
        entered.set()
        await asyncio.Event().wait()

    server = ApiServer(app, Endpoints())
    await server.start()
    call = asyncio.create_task(get(f"{server.url}/hang"))
    async with asyncio.timeout(90):
        await entered.wait()
        await server.stop()
        with pytest.raises(httpx.HTTPError):
            (await call).raise_for_status()


async def test_stop_twice_and_before_start_is_harmless() -> None:
    """Stopping is idempotent."""
    server = ApiServer(FastAPI(), Endpoints())
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()


SLOW_BODY = b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n1"


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", SLOW_BODY])
async def test_idle_and_slow_connections_do_not_take_up_all_places(sent: bytes) -> None:
    """Whoever opens connections and never ends a call is cut off, and others are answered again."""
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints(), patience_s=0.5)
    await server.start()
    idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(PLACES + 6)]
    try:
        for _, writer in idle:
            writer.write(sent)
        async with asyncio.timeout(90):
            await asyncio.gather(*(cut_off(reader) for reader, _ in idle))
            await answered(f"{server.url}/healthz")
    finally:
        for _, writer in idle:
            writer.close()
        await server.stop()


async def answered(url: str) -> None:
    """Once: a busy machine may take longer than the server's patience, which is short here."""
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(httpx.TransportError):
                assert (await get(url)).status_code == 200
                return


async def cut_off(reader: asyncio.StreamReader) -> None:
    """Read until the other side ends the connection."""
    with contextlib.suppress(ConnectionResetError):
        await reader.read()


async def test_a_connection_in_use_is_kept() -> None:
    """Calls one after the other over one connection go on for longer than one answer may take."""
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints(), patience_s=3.0)
    await server.start()
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            ports = set()
            for _ in range(8):
                response = await client.get(f"{server.url}/healthz")
                ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
                await asyncio.sleep(0.5)
        assert len(ports) == 1
    finally:
        await server.stop()


@pytest.mark.parametrize(
    "host", ["[::1", "", "a b", "[", "re_bound.example", "::1", "\x00", "127.0.0.1.x.example"]
)
async def test_no_host_header_makes_it_fail(host: str) -> None:
    """A Host that is no address is none of this machine: the call needs a token, or is refused."""
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints())
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(90):
            answer = await reader.read()
        writer.close()
        assert int(answer.split(b" ")[1]) in (400, 401, 403)
    finally:
        await server.stop()
