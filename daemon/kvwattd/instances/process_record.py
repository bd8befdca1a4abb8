"""What is written down about one process instance. Blocking.

Four small files per member: `start` (the intent, by kvwatt), `pid` (by the instance itself, see
process_child), `stop` (by kvwatt, before the first signal) and `failed` (why it is not up). Each is replaced
as a whole: more than one kvwatt may be there. The `lock` is held by the instance as long as it lives, `asked`
by a kvwatt for the moment in which it starts one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from kvwattd.instances.process_facts import Facts, RecordError, Running, Start, Stop
from kvwattd.instances.process_scan import is_alive, marked, marker
from kvwattd.whole_file import write_whole

T = TypeVar("T")
STARTING_PATIENCE_S = 2.0  # another's start is over in milliseconds
_MAX_BYTES = 64 * 1024


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

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """One kvwatt at a time: between one's look and its intent another's instance may say who it is.

        Raises RecordError where another does not come to an end.
        """
        path = self._path("asked")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}") from None
        try:
            until_s = time.monotonic() + STARTING_PATIENCE_S
            while not _taken(descriptor):
                if time.monotonic() > until_s:
                    raise RecordError(f"{path}: another kvwatt is starting it and does not come to an end")
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

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
        try:
            write_whole(self._path(kind), json.dumps(asdict(record)).encode())
        except OSError as error:
            raise RecordError(f"{self._path(kind)}: cannot write: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class _Failed:
    reason: str


def _taken(descriptor: int) -> bool:
    """Whether the lock is ours now; it goes with the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_a(value: object, annotation: str) -> bool:
    if annotation == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value).__name__ == annotation
