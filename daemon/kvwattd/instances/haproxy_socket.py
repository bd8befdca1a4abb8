"""HAProxy's runtime socket: one command per connection, one answer until the end of the stream.

A connection per command costs nothing and needs no reconnecting: after a restart of HAProxy the next command
simply reaches the new process.
"""

from __future__ import annotations

import asyncio
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvwattd.instances.router import RouterError

MAX_ANSWER_BYTES: Final = 4 << 20
# Flags of srv_admin_state, from HAProxy's management guide: any of these keeps new requests away.
_MAINT: Final = 0x01 | 0x02 | 0x20 | 0x40  # forced, inherited, by the resolver, by the hostname
_DRAIN: Final = 0x08 | 0x10  # forced, inherited
CONFIGURED_OUT: Final = 0x04  # `disabled` in the configuration


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server as HAProxy tells it. `sessions`: established and queued; `weight`: None: not told."""

    name: str
    admin: int
    sessions: int | None
    weight: int | None = None

    @property
    def out(self) -> bool:
        """Whether new requests are kept away by the administrator's state."""
        return bool(self.admin & (_MAINT | _DRAIN))

    @property
    def maintenance(self) -> bool:
        """Out for requests with a cookie too."""
        return bool(self.admin & _MAINT)


class HaproxySocket:
    """One runtime socket; `prefix` goes before every command (`@!1234 ` on a master socket)."""

    def __init__(self, path: Path, timeout_s: float, prefix: str = "") -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._prefix = prefix

    def worker(self, pid: int) -> HaproxySocket:
        """The same socket, which must be a master's, speaking to one of its workers."""
        return HaproxySocket(self.path, self._timeout_s, f"@!{pid} ")

    async def ask(self, command: str) -> str:
        """The answer to a command. Raises RouterError unreachable, deadline, forbidden or malformed."""
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._exchange(f"{self._prefix}{command}\n".encode())
        except TimeoutError as error:
            detail = f"{self.path} did not answer {command!r} within {self._timeout_s:g} s"
            raise RouterError("deadline", detail) from error
        except PermissionError as error:
            raise RouterError("forbidden", f"{self.path} may not be opened: {error.strerror}") from error
        except OSError as error:
            told = error.strerror or str(error)
            raise RouterError("unreachable", f"{self.path} cannot be reached: {told}") from error
        text = data.decode("utf-8", "replace")
        if "permission denied" in text[:200].lower():
            raise RouterError("forbidden", f"{self.path} refuses {command!r}: it needs `level admin`")
        if text.startswith("Can't find the target PID"):
            raise RouterError("unreachable", f"{self.path}: worker {self._prefix.strip()} has ended")
        return text

    async def order(self, command: str) -> None:
        """A command that answers nothing when it was carried out. Raises RouterError."""
        told = (await self.ask(command)).strip()
        if told:
            unknown = "no such" in told.lower() or "can't find" in told.lower()
            cause = "unknown-member" if unknown else "refused"
            raise RouterError(cause, f"{self.path} answered {command!r} with {told[:200]!r}")

    async def servers(self, backend: str) -> dict[str, ServerState]:
        """Every server of a backend. Raises RouterError, unknown-member where there is no such backend."""
        states = _states(await self.ask(f"show servers state {backend}"), backend)
        sessions = _sessions(await self.ask(f"show stat {backend} 4 -1"), backend)
        return {
            name: ServerState(name, flags, sessions.get(name), weight)
            for name, (flags, weight) in states.items()
        }

    async def workers(self) -> tuple[int, ...]:
        """Process ids of a master's workers, those of before a reload that still serve among them."""
        return _worker_pids(await self.ask("show proc"))

    async def _exchange(self, command: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(command)
            writer.write_eof()  # a master socket waits for more otherwise
            await writer.drain()
            data = bytearray()
            while chunk := await reader.read(1 << 16):
                data += chunk
                if len(data) > MAX_ANSWER_BYTES:
                    raise RouterError("malformed", f"{self.path} answers more than {MAX_ANSWER_BYTES} bytes")
            return bytes(data)
        finally:
            writer.close()


def _states(text: str, backend: str) -> dict[str, tuple[int, int | None]]:
    """Flags and weight, by the names in the header line: columns come with the versions, the names stay."""
    lines = [line for line in text.splitlines() if line.strip()]
    header = next((line for line in lines if line.startswith("# ")), None)
    if header is None:
        if "find backend" in text.lower() or "no such" in text.lower():
            raise RouterError("unknown-member", f"HAProxy has no backend {backend!r}: {text.strip()[:200]}")
        raise RouterError("malformed", f"show servers state: no header in {text[:200]!r}")
    names = header[2:].split()
    found: dict[str, tuple[int, int | None]] = {}
    for line in lines[lines.index(header) + 1 :]:
        row = dict(zip(names, line.split(), strict=False))
        if row.get("be_name") != backend:
            continue
        weight = row.get("srv_uweight", "")
        try:
            flags = int(row["srv_admin_state"])
            found[row["srv_name"]] = flags, int(weight) if weight.isdecimal() else None
        except (KeyError, ValueError) as error:
            raise RouterError("malformed", f"show servers state: cannot read {line[:200]!r}") from error
    return found


def _sessions(text: str, backend: str) -> dict[str, int]:
    """Established (`scur`) and queued (`qcur`) sessions per server; one that is not told is left out."""
    body = text.lstrip().removeprefix("# ")
    found: dict[str, int] = {}
    for row in csv.DictReader(io.StringIO(body)):
        name, running, queued = row.get("svname"), row.get("scur"), row.get("qcur")
        if row.get("pxname") != backend or name is None or name in ("FRONTEND", "BACKEND"):
            continue
        if running and queued and running.isdecimal() and queued.isdecimal():
            found[name] = int(running) + int(queued)
    return found


def _worker_pids(text: str) -> tuple[int, ...]:
    pids = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[1] == "worker" and words[0].isdecimal():
            pids.append(int(words[0]))
    if not pids:
        raise RouterError("malformed", f"show proc: no worker in {text[:200]!r}")
    return tuple(pids)
