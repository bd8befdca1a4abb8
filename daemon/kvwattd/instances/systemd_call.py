"""Runs `systemctl` under a deadline and reads what it says.

The command and not a D-Bus library: wherever the units are, it is, in the version that fits them; it speaks
to the bus or, as root, to systemd itself; it waits for jobs; and a call every few seconds costs 10 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from kvwattd.instances.backend import BackendError, Cause

MAX_BYTES = 1 << 20
# What systemctl writes (in the C locale) and what it means.
_SAYS = (
    ("access denied", Cause.FORBIDDEN),
    ("authentication", Cause.FORBIDDEN),
    ("permission denied", Cause.FORBIDDEN),
    ("operation not permitted", Cause.FORBIDDEN),
    ("not found", Cause.UNKNOWN_MEMBER),
    ("not loaded", Cause.UNKNOWN_MEMBER),
    ("masked", Cause.UNKNOWN_MEMBER),
    ("failed to connect", Cause.UNREACHABLE),
    ("transport endpoint", Cause.UNREACHABLE),
    ("connection", Cause.UNREACHABLE),
    ("timed out", Cause.DEADLINE),
)


async def systemctl(command: Sequence[str], arguments: Sequence[str], deadline_s: float) -> str:
    """Its output. `command` is how to call it (`["systemctl"]`). Raises BackendError."""
    words = [*command, "--no-ask-password", "--no-pager", *arguments]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            start_new_session=True,
        )
    except OSError as error:
        raise BackendError(Cause.UNREACHABLE, f"{command[0]}: {error.strerror}") from None
    try:
        async with asyncio.timeout(deadline_s):
            output, errors = await process.communicate()
    except TimeoutError:
        said = f"systemctl {arguments[0]} did not end within {deadline_s:g} s"
        raise BackendError(Cause.DEADLINE, said) from None
    finally:
        if process.returncode is None:  # also where the caller is cancelled; the job itself goes on
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it started and that holds its pipes
            await process.wait()
    if process.returncode != 0:
        raise _failure(arguments, process.returncode, errors)
    return output[:MAX_BYTES].decode(errors="replace")


def blocks(output: str) -> list[Mapping[str, str]]:
    """`systemctl show` of several units: one block of `Key=Value` lines each, in the order asked."""
    return [
        dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        for block in output.split("\n\n")
        if block.strip()
    ]


def _failure(arguments: Sequence[str], status: int | None, errors: bytes) -> BackendError:
    text = errors[:MAX_BYTES].decode(errors="replace").strip()
    cause = next((cause for words, cause in _SAYS if words in text.lower()), Cause.FAILED)
    shown = " ".join(text.split())[:300] or f"exit status {status}"
    return BackendError(cause, f"systemctl {' '.join(arguments)}: {shown}")
