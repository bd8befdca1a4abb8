"""The server lives inside the daemon's loop: bound port, bounded stop, hands off the signals."""

from __future__ import annotations

import asyncio
import signal
import socket

import httpx
import pytest
from fake_plane import FakePlane
from fastapi import FastAPI
from token_files import opened

from kvwattd.api.app import create_app
from kvwattd.api.listeners import ApiUnavailable, bind
from kvwattd.api.server import ApiServer, Endpoints


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
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
    async with asyncio.timeout(30):
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
