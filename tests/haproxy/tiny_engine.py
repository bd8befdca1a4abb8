"""The smallest server that HAProxy can be tested with: health, sleep, and answers that last as told."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from loop_turns import turns


class TinyEngine:
    """`POST /` answers with its name, at once or when `go` is set; counts what it got. One connection, one
    request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asleep = False
        self.go = asyncio.Event()
        self.go.set()
        self.got = 0
        self.running = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await turns()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await turns()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        body = b"ok"
        if path == "/is_sleeping":
            body = b'{"is_sleeping":%s}' % (b"true" if self.asleep else b"false")
        elif method == "POST":
            self.got += 1
            self.running += 1
            try:
                await (asyncio.sleep(3600) if self.asleep else self.go.wait())
            finally:
                self.running -= 1
            body = self.name.encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
