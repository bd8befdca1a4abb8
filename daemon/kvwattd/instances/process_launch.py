"""How one process instance is run: command, environment, a session and a log of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvwattd.instances.process_scan import FOLDER_VARIABLE, MEMBER_VARIABLE

PLACEHOLDER = re.compile(r"\{(name|gpus|gpu_count)\}")
# kvwatt's own talk with systemd: an instance that inherits it would speak for kvwatt.
_OURS_ALONE = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "INVOCATION_ID"}
)


@dataclass(frozen=True, slots=True)
class Launch:
    """How one member is run.

    Args:
        command: program and arguments, no shell. `{name}`, `{gpus}` (UUIDs, comma-separated) and
            `{gpu_count}` are replaced; other braces stay.
        gpus: UUIDs for CUDA_VISIBLE_DEVICES where no `place` is given; empty: the variable is left alone.
        environment: added to kvwatt's own.
        folder: working folder.
    """

    command: tuple[str, ...]
    gpus: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


def expand(command: Sequence[str], member: str, gpus: Sequence[str]) -> tuple[str, ...]:
    """The command with its placeholders filled in."""
    values = {"name": member, "gpus": ",".join(gpus), "gpu_count": str(len(gpus))}
    return tuple(PLACEHOLDER.sub(lambda found: values[found[1]], part) for part in command)


def environment(launch: Launch, marker: tuple[str, str], gpus: Sequence[str]) -> dict[str, str]:
    """kvwatt's own, with the member's variables; `marker`: folder and name, to find its processes by."""
    folder, name = marker
    inherited = {key: value for key, value in os.environ.items() if key not in _OURS_ALONE}
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return inherited | visible | dict(launch.environment) | {FOLDER_VARIABLE: folder, MEMBER_VARIABLE: name}


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """In a session of its own: what is typed at kvwatt's terminal does not reach it."""
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = (
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), appended, 0o640),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    )
    return os.posix_spawn(
        command[0], tuple(command), environment, file_actions=files, setsid=True, setsigmask=()
    )
