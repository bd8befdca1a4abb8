"""Serve the API inside the daemon's event loop: no signal handlers, bounded start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

log = logging.getLogger(__name__)

START_DEADLINE_S = 5.0
STOP_DEADLINE_S = 2.0


class ApiUnavailable(Exception):  # noqa: N818 (reads as the state it tells of)
    """The API cannot be served here; the message names key, value and what to do."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the daemon."""
        yield


class ApiServer:
    """One listening socket. `await start()`, then `port` is bound; `await stop()` always ends."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._host = host
        self._wanted_port = port
        self._server = _Server(_config(app))
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The bound port, also when 0 was asked for."""
        if self._socket is None:
            raise RuntimeError("the API server is not started")
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Bind and serve. Raises ApiUnavailable."""
        self._socket = bind(self._host, self._wanted_port)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="api")
        ready = asyncio.create_task(self._server.ready.wait(), name="api-ready")
        waited = {self._task, ready}
        await asyncio.wait(waited, timeout=START_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._server.ready.is_set():
            await self.stop()
            raise ApiUnavailable(f"the API did not start within {START_DEADLINE_S} s; the log has the reason")
        log.info("api: listening on %s", self.url)

    async def stop(self) -> None:
        """Let running calls end for a moment, then cut them off. Safe to call twice."""
        task, self._task = self._task, None
        if task is None:
            return
        self._server.should_exit = True
        _, pending = await asyncio.wait([task], timeout=STOP_DEADLINE_S)
        if pending:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_DEADLINE_S)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if task.done() and not task.cancelled() and task.exception() is not None:
            log.error("api: ended with an error", exc_info=task.exception())


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=64,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ApiUnavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=64)
    except (OSError, OverflowError) as error:
        accepted = "a local address and a free port at api.host and api.port (0 takes any free port)"
        raise ApiUnavailable(f"api {host}:{port}: {error}; accepted: {accepted}") from error
    listener.setblocking(False)
    # Accepted sockets inherit it; asyncio sets it only on sockets made with an explicit protocol, and
    # without it each answer waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
