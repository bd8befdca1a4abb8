"""One client of the guard: its messages, one at a time, each answered."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

from kvwattd.guard import protocol
from kvwattd.guard.protocol import Code, GuardError, Message

HELLO_DEADLINE_S = 2.0
WRITE_DEADLINE_S = 1.0

Handler = Callable[["Connection", Message], Awaitable[Message]]


class Connection:
    """Reads lines, hands them to `handler`, writes replies; ends on the first breach of the format."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.pid, self.uid = _peer(writer)
        self.greeted = False
        self._reader = reader
        self._writer = writer

    async def serve(self, handler: Handler) -> None:
        """Until the client leaves or breaks the format."""
        while (line := await self._next_line()) is not None:
            if not await self._send(await self._answer(handler, line)):
                return

    async def refuse(self, error: GuardError) -> None:
        await self._send(_failed(None, error))

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # already gone, which is what was wanted

    async def _next_line(self) -> bytes | None:
        try:
            async with asyncio.timeout(None if self.greeted else HELLO_DEADLINE_S):
                return await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            limit = f"a message may have {protocol.MAX_MESSAGE_BYTES} bytes"
            await self.refuse(GuardError(Code.TOO_LARGE, f"{limit}; connection closed"))
        except TimeoutError:
            await self.refuse(GuardError(Code.HELLO_FIRST, f"no hello within {HELLO_DEADLINE_S:g} s"))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client left
        return None

    async def _answer(self, handler: Handler, line: bytes) -> Message:
        number: int | None = None
        try:
            message = protocol.decode(line)
            number = protocol.int_field(message, "id")
            return {"id": number, "ok": True, **await handler(self, message)}
        except GuardError as error:
            return _failed(number, error)

    async def _send(self, message: Message) -> bool:
        """False when the client no longer reads."""
        try:
            self._writer.write(protocol.encode(message))
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await self._writer.drain()
        except OSError:  # TimeoutError is one
            return False
        return True


def _failed(number: int | None, error: GuardError) -> Message:
    return {"id": number, "ok": False, "error": {"code": error.code, "message": error.message}}


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """The kernel's word on who connected: process and user."""
    channel: socket.socket = writer.get_extra_info("socket")
    pid, uid, _gid = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
