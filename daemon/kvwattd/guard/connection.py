"""One client of the guard: its messages, one at a time, each answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvwattd.guard import protocol
from kvwattd.guard.peers import Peer
from kvwattd.guard.protocol import Code, GuardError, Message

HELLO_DEADLINE_S = 2.0
WRITE_DEADLINE_S = 1.0
# A daemon sends some ten messages a second. What comes faster waits in its own socket, and harms nobody else.
MESSAGES_PER_S, BURST = 200.0, 400.0

Handler = Callable[["Connection", Message], Awaitable[Message]]


class Connection:
    """Reads lines, hands them to `handler`, writes replies; ends on the first breach of the format."""

    def __init__(
        self, number: int, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.peer = peer
        self._pace = Pace(MESSAGES_PER_S, BURST)
        self.greeted = False
        self._reader = reader
        self._writer = writer

    async def serve(self, handler: Handler) -> None:
        """Until the client leaves or breaks the format."""
        now_s = asyncio.get_running_loop().time
        while (line := await self._next_line()) is not None:
            await asyncio.sleep(self._pace.wait_s(now_s()))
            if not await self._send(await self._answer(handler, line)):
                return

    async def turn_away(self, error: GuardError) -> None:
        """Answer the first message with `error`, so that the client learns of it, and no other."""
        if await self._next_line() is not None:
            await self.refuse(error)

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


class Pace:
    """A bucket of permits. Pure: time is an argument (monotonic seconds)."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._then_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Take one permit; how long to wait before using it."""
        since_s = 0.0 if self._then_s is None else max(0.0, now_s - self._then_s)
        self._then_s = now_s
        self._left = min(self._burst, self._left + since_s * self._per_s) - 1.0
        return max(0.0, -self._left / self._per_s)
