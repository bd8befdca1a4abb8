"""Any router, told by commands: one is run to admit a member, one to withdraw it.

`{member}` in an argument is replaced by the member's name; no shell is involved. Exit status 0 confirms, all
else does not, and the command is run again at a later step; after a restart of kvwatt too. So commands must
be idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvwattd.instances.router import RouterError

MAX_OUTPUT_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class HookSettings:
    """Commands as lists of strings.

    Args:
        admit: takes `{member}` into service.
        withdraw: takes it out; returns only when no new request can reach it.
        sessions: prints how many requests the router still has there, as a whole number. Empty: not asked,
            the engine's own counts must do.
        timeout_s: deadline of one command; it is killed with everything that it started.
        settle_s: how long after `withdraw` its effect is certain.
    """

    admit: Sequence[str]
    withdraw: Sequence[str]
    sessions: Sequence[str] = ()
    timeout_s: float = 10.0
    settle_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("admit", "withdraw"):
            command = getattr(self, name)
            if not command or not any("{member}" in word for word in command):
                raise ValueError(f"hooks.{name}: need a command that names {{member}}, got {list(command)}")


class HooksRouter:
    """Runs the commands."""

    name = "hooks"

    def __init__(self, settings: HookSettings) -> None:
        self._settings = settings
        self.counts_sessions = bool(settings.sessions)

    async def admit(self, member: str) -> None:
        """Run the command; RouterError unless it ends with 0 in time."""
        await self._run(self._settings.admit, member)

    async def withdraw(self, member: str) -> None:
        """Run the command and let it take effect."""
        await self._run(self._settings.withdraw, member)
        await asyncio.sleep(self._settings.settle_s)

    async def sessions(self, member: str) -> int | None:
        """What the command prints; None without one. RouterError when it fails or prints something else."""
        if not self._settings.sessions:
            return None
        told = (await self._run(self._settings.sessions, member)).strip()
        if not told.isdecimal():
            raise RouterError(
                "malformed", f"{self._settings.sessions[0]} printed {told[:80]!r}, need a count"
            )
        return int(told)

    async def admitted(self) -> frozenset[str] | None:
        """Commands do not tell."""
        return None

    async def close(self) -> None:
        """Nothing is held."""

    async def _run(self, command: Sequence[str], member: str) -> str:
        words = [word.replace("{member}", member) for word in command]
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise RouterError("unreachable", f"{words[0]} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                output = await _all_of(process)
                status = await process.wait()
        except TimeoutError as error:
            detail = f"{words[0]} did not end within {self._settings.timeout_s:g} s"
            raise RouterError("deadline", detail) from error
        finally:
            await _end(process)
        if status != 0:
            raise RouterError("refused", f"{words[0]} ended with {status}: {output.strip()[:200]!r}")
        return output


async def _all_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None  # noqa: S101  # opened above
    data = bytearray()
    while chunk := await process.stdout.read(4096):
        if len(data) < MAX_OUTPUT_BYTES:
            data += chunk
    return data.decode("utf-8", "replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """One that takes too long goes with everything that it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
