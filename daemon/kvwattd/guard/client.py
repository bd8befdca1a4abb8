"""The daemon's side of the guard protocol: every call has a deadline, reconnecting is up to the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from kvwattd.guard import protocol
from kvwattd.guard.protocol import Code, GuardError, GuardHello, GuardStatus, Message, Role


class GuardClient:
    """One connection, one call at a time; after `timeout` or `unreachable` close it and connect again."""

    def __init__(self, socket_path: Path, timeout_s: float) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()
        self._number = 0

    async def connect(self, role: Role = Role.CONTROL) -> GuardHello:
        """Raises GuardError: unreachable, timeout, busy, bad_version."""
        await self.close()
        try:
            async with asyncio.timeout(self._timeout_s):
                opening = asyncio.open_unix_connection(self._path, limit=4 * protocol.MAX_MESSAGE_BYTES)
                self._streams = await opening
        except TimeoutError:
            raise GuardError(
                Code.TIMEOUT, f"{self._path}: no connection within {self._timeout_s:g} s"
            ) from None
        except OSError as error:
            raise GuardError(Code.UNREACHABLE, f"{self._path}: {error.strerror or error}") from error
        reply = await self._ask({"op": "hello", "v": protocol.VERSION, "role": str(role)})
        hello = protocol.parse_hello(reply)
        if hello.version != protocol.VERSION:
            text = f"{self._path}: the guard speaks version {hello.version}, not {protocol.VERSION}"
            raise GuardError(Code.BAD_VERSION, text)
        return hello

    async def set_clocks(self, uuids: Sequence[str], floor_mhz: int, target_mhz: int) -> None:
        """All GPUs or none. Raises GuardError."""
        await self._ask({"op": "set", "gpus": list(uuids), "floor_mhz": floor_mhz, "target_mhz": target_mhz})

    async def reset(self, uuids: Sequence[str]) -> None:
        """Driver default on those of `uuids` that were set. Raises GuardError."""
        await self._ask({"op": "reset", "gpus": list(uuids)})

    async def renew(self) -> None:
        """Raises GuardError; `lease_expired` says that clocks were reset meanwhile."""
        await self._ask({"op": "renew"})

    async def status(self) -> GuardStatus:
        """Raises GuardError."""
        return protocol.parse_status(await self._ask({"op": "status"}))

    async def resume(self, uuids: Sequence[str]) -> None:
        """The operator's word that these may be set again, whoever set them. Raises GuardError."""
        await self._ask({"op": "resume", "gpus": list(uuids)})

    async def close(self) -> None:
        """Drop the connection; the guard then resets what was set over it. Never raises, may be repeated."""
        streams, self._streams = self._streams, None
        if streams is None:
            return
        streams[1].close()
        try:
            async with asyncio.timeout(self._timeout_s):
                await streams[1].wait_closed()
        except OSError:
            return  # the other side was gone first

    async def _ask(self, message: Message) -> Message:
        async with self._turn:
            self._number += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = await self._exchange({"id": self._number, **message})
            except TimeoutError:
                text = f"{self._path}: no answer to {message['op']} within {self._timeout_s:g} s"
                raise GuardError(Code.TIMEOUT, text) from None
            except (OSError, asyncio.IncompleteReadError) as error:
                raise GuardError(Code.UNREACHABLE, f"{self._path}: connection lost: {error}") from None
            except asyncio.LimitOverrunError:
                raise GuardError(Code.TOO_LARGE, f"{self._path}: the guard's answer is too long") from None
        return _checked(reply)

    async def _exchange(self, message: Message) -> Message:
        if self._streams is None:
            raise GuardError(Code.UNREACHABLE, f"{self._path}: not connected")
        reader, writer = self._streams
        writer.write(protocol.encode(message))
        await writer.drain()
        while True:
            reply = protocol.decode(await reader.readuntil(b"\n"))
            if reply.get("id") in (message["id"], None):  # others answer calls that were given up
                return reply


def _checked(reply: Message) -> Message:
    if reply.get("ok") is True:
        return reply
    error = reply.get("error")
    if not isinstance(error, dict):
        raise GuardError(Code.BAD_MESSAGE, f"the guard's answer has neither ok nor error: {str(reply)[:80]}")
    raise GuardError(protocol.str_field(error, "code"), protocol.str_field(error, "message"))
