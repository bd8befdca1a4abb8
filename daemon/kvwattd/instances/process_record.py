"""What is written down about one process instance, and whether it still runs. Blocking.

Four small files per member, each with one writer: `start` (the intent, by kvwatt), `pid` (by the instance
itself, see process_child), `stop` (by kvwatt, before the first signal) and `failed` (why it is not up). The
`lock` is held by the instance as long as it lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from kvwattd.instances import process_child

T = TypeVar("T")
MEMBER_VARIABLE = "KVWATT_MEMBER"
FOLDER_VARIABLE = "KVWATT_MEMBER_FOLDER"
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Start:
    """A start was asked for. `at_s`: monotonic, comparable within one boot."""

    nonce: str
    at_s: float
    boot_id: str


@dataclass(frozen=True, slots=True)
class Running:
    """The process: a number, and when it began, since numbers come again."""

    pid: int
    ticks: int
    boot_id: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop was asked for; `terminated` once SIGTERM was sent."""

    at_s: float
    boot_id: str
    terminated: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of one member at one moment."""

    start: Start | None
    running: Running | None
    stop: Stop | None
    failed: str | None
    locked: bool  # somebody holds the lock
    alive: bool  # the process of `running` exists and is no zombie
    leftovers: frozenset[int] = (
        frozenset()
    )  # processes of the member besides; looked for once it has ended or is to end


class RecordError(Exception):
    """A record cannot be read or written: then nothing is known of the member."""


class Records:
    """The files of one member in `folder`."""

    def __init__(self, folder: Path, member: str) -> None:
        self._folder = folder
        self._member = member

    def facts(self) -> Facts:
        """Raises RecordError."""
        start, running, stop = (
            self._load("start", Start),
            self._load("pid", Running),
            self._load("stop", Stop),
        )
        failed = self._load("failed", _Failed)
        alive = running is not None and is_alive(running)
        ended = not alive and (running is not None or stop is not None)
        return Facts(
            start=start,
            running=running,
            stop=stop,
            failed=failed.reason if failed else None,
            locked=self._locked(),
            alive=alive,
            leftovers=self.processes() if ended else frozenset(),
        )

    def intend(self, start: Start) -> None:
        """A new start, and nothing of an earlier one, which must be over. Raises RecordError."""
        for kind in ("stop", "failed", "pid"):
            self.remove(kind)
        self._save("start", start)

    def ask_stop(self, stop: Stop) -> None:
        """Raises RecordError. The intent goes after it: a start under way then ends in the child, or here."""
        self._save("stop", stop)
        self.remove("start")

    def fail(self, reason: str) -> None:
        """It is not up, and nothing of it is left. Raises RecordError."""
        self._save("failed", _Failed(reason))
        for kind in ("pid", "start", "stop"):
            self.remove(kind)

    def clear(self) -> None:
        """It is stopped. The stop's own record goes last: until then it explains what is missing."""
        for kind in ("failed", "start", "pid", "stop"):
            self.remove(kind)

    def remove(self, kind: str) -> None:
        """Raises RecordError."""
        try:
            self._path(kind).unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"{self._path(kind)}: cannot remove: {error.strerror}") from None

    def processes(self) -> frozenset[int]:
        """Every process that was started for this member, by the environment it was given."""
        wanted = marker(self._folder, self._member)
        return frozenset(pid for pid, found in marked() if found == wanted)

    def _path(self, kind: str) -> Path:
        return self._folder / f"{self._member}.{kind}"

    def _locked(self) -> bool:
        try:
            descriptor = os.open(self._path("lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RecordError(f"{self._path('lock')}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            raise RecordError(f"{self._path('lock')}: {error.strerror}") from None
        else:
            return False
        finally:
            os.close(descriptor)

    def _load(self, kind: str, shape: type[T]) -> T | None:
        path = self._path(kind)
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
            record = shape(**found)
            if not all(
                _is_a(found[key], kind_of) for key, kind_of in shape.__annotations__.items() if key in found
            ):
                raise TypeError
            return record
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError, RecursionError):
            raise RecordError(f"{path}: not a record of ours; remove it when the instance is down") from None

    def _save(self, kind: str, record: Start | Stop | _Failed) -> None:
        path = self._path(kind)
        temporary = path.with_name(f"{path.name}.new")
        try:
            with temporary.open("w") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise RecordError(f"{path}: cannot write: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class _Failed:
    reason: str


def _is_a(value: object, annotation: str) -> bool:
    if annotation == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value).__name__ == annotation


def marker(folder: Path, member: str) -> tuple[str, str]:
    """What every process of a member carries in its environment."""
    return str(folder), member


def marked() -> Iterator[tuple[int, tuple[str, str]]]:
    """Processes of instances of any folder that this user may look at; blocking, a few milliseconds."""
    for name in os.listdir("/proc"):  # noqa: PTH208  # a tenth of the time of iterdir
        if name.isdigit() and (found := marker_of(int(name))) is not None:
            yield int(name), found


def marker_of(pid: int) -> tuple[str, str] | None:
    """None where it is none of ours, has gone, or belongs to somebody whose processes we may not see."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if MEMBER_VARIABLE.encode() not in environment or _is_zombie(pid):
            return None
    except OSError:
        return None
    found = dict(item.partition(b"=")[::2] for item in environment.split(b"\0"))
    folder, member = found.get(FOLDER_VARIABLE.encode()), found.get(MEMBER_VARIABLE.encode())
    return None if folder is None or member is None else (os.fsdecode(folder), os.fsdecode(member))


def is_alive(running: Running) -> bool:
    """Whether exactly that process exists. A boot ends all; a hidden boot id leaves it to the ticks."""
    current = process_child.boot_id()
    if current and running.boot_id and current != running.boot_id:
        return False
    try:
        return process_child.start_ticks(running.pid) == running.ticks and not _is_zombie(running.pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, IndexError) as error:
        raise RecordError(f"/proc/{running.pid}/stat: {error}") from None


def send(running: Running, number: signal.Signals) -> None:
    """To that process or, where it is gone, to nobody: the descriptor is taken before the look."""
    try:
        descriptor = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(running):
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _is_zombie(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")
