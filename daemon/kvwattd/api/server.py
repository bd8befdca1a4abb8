"""Serve the API inside the daemon's event loop: no signal handlers, bounded start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from kvwattd.api.listeners import BACKLOG, ApiUnavailable, Tls, bind, bind_unix, unlink_socket

log = logging.getLogger(__name__)

START_DEADLINE_S = 5.0
STOP_DEADLINE_S = 2.0
PLACES = 64  # connections and calls at a time; beyond it the answer is 503
PATIENCE_S = 30.0  # from a connection, or its last answer, to its next answer


class _Protocol(H11Protocol):
    """Closes a connection that got no answer done in time, slow as it may send or read: places are few."""

    def __init__(self, *args: Any, patience_s: float, **options: Any) -> None:  # noqa: ANN401 (uvicorn's own)
        super().__init__(*args, **options)
        self._patience_s = patience_s
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_anew()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_anew()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _wait_anew(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(self._patience_s, self.transport.abort)


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


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where to serve: over TCP where there is a host, over a unix socket where there is a path, or both."""

    host: str | None = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None
    socket: Path | None = None
    socket_mode: int = 0o660
    socket_group: str | None = None


class ApiServer:
    """`await start()`, then `port` is bound; `await stop()` always ends."""

    def __init__(self, app: FastAPI, endpoints: Endpoints, patience_s: float = PATIENCE_S) -> None:
        self._app = app
        self._patience_s = patience_s
        self._at = endpoints
        self._tcp: socket.socket | None = None
        self._serving: list[tuple[_Server, socket.socket, asyncio.Task[None]]] = []

    @property
    def port(self) -> int:
        """The bound port, also when 0 was asked for."""
        if self._tcp is None:
            raise RuntimeError("the API server is not started, or not over TCP")
        return int(self._tcp.getsockname()[1])

    @property
    def url(self) -> str:
        if self._at.host is None:
            return f"unix:{self._at.socket}"
        host = f"[{self._at.host}]" if ":" in self._at.host else self._at.host
        return f"{'https' if self._at.tls else 'http'}://{host}:{self.port}"

    async def start(self) -> None:
        """Bind and serve. Raises ApiUnavailable."""
        try:
            if self._at.host is not None:
                if self._at.tls is not None:
                    self._at.tls.check()
                self._tcp = bind(self._at.host, self._at.port)
                await self._serve(self._tcp, self._at.tls)
            if self._at.socket is not None:
                listener = bind_unix(self._at.socket, self._at.socket_mode, self._at.socket_group)
                await self._serve(listener, None)
        except ApiUnavailable:
            await self.stop()
            raise
        log.info("api: listening on %s", self.url)

    async def _serve(self, listener: socket.socket, tls: Tls | None) -> None:
        server = _Server(_config(self._app, tls, self._patience_s))
        task = asyncio.create_task(server.serve(sockets=[listener]), name="api")
        self._serving.append((server, listener, task))
        ready = asyncio.create_task(server.ready.wait(), name="api-ready")
        waited = {task, ready}
        await asyncio.wait(waited, timeout=START_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not server.ready.is_set():
            raise ApiUnavailable(f"the API did not start within {START_DEADLINE_S} s; the log has the reason")

    async def renew_tls(self) -> None:
        """New connections use certificate and key as they are on disk now. Raises ApiUnavailable."""
        if self._at.tls is None:
            return
        await asyncio.to_thread(self._at.tls.check)
        # Here and not in the thread: a context must not change while it begins a connection.
        for server, _, _ in self._serving:
            if server.config.ssl is not None:
                self._at.tls.load(server.config.ssl)

    async def stop(self) -> None:
        """Let running calls end for a moment, then cut them off. Safe to call twice."""
        serving, self._serving = self._serving, []
        for server, _, _ in serving:
            server.should_exit = True
        for _, listener, task in serving:
            await _ended(task)
            listener.close()
        if self._at.socket is not None and any(s.family == socket.AF_UNIX for _, s, _ in serving):
            unlink_socket(self._at.socket)
        self._tcp = None


async def _ended(task: asyncio.Task[None]) -> None:
    _, pending = await asyncio.wait([task], timeout=STOP_DEADLINE_S)
    if pending:
        task.cancel()
        await asyncio.wait([task], timeout=STOP_DEADLINE_S)
    if task.done() and not task.cancelled() and task.exception() is not None:
        log.error("api: ended with an error", exc_info=task.exception())


def _config(app: FastAPI, tls: Tls | None, patience_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        http=cast(type[asyncio.Protocol], partial(_Protocol, patience_s=patience_s)),
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=PLACES,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
