"""Versions of one instance's model on disk: the shipped one, and those refitted online.

    FOLDER/versions/<n>/    an artifact and version.json: how it was made and how it was judged
    FOLDER/current          which one serves, whether it is held, and for which shipped model this holds

The shipped artifact is version 0 and is never touched. A refit of another shipped model, a version that
is damaged, and a pointer that cannot be read never serve: the newest sound version before it does, and at
last the shipped one. All methods read or write the disk: they are called in threads.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from kvwatt.artifact import MANIFEST, POWER_TREES, STEP_TREES, ArtifactError, verify
from kvwattd.whole_file import sync_folder, write_whole

log = logging.getLogger(__name__)

SHIPPED = 0
KEPT = 8
RECORD = "version.json"
_MAX_BYTES = 1 << 16
_FILES = (MANIFEST, STEP_TREES, POWER_TREES)

VersionState = Literal["sound", "damaged", "other_base"]


class VersionError(Exception):
    """A version cannot be selected or kept; the message says why, `accepted` what could be."""

    def __init__(self, reason: str, accepted: str = "a sound version") -> None:
        super().__init__(reason)
        self.accepted = accepted


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(_Document):
    """version.json: what a refitted version was made from."""

    base_sha256: str = ""  # of the shipped model's manifest
    created: str = ""
    parent: NonNegativeInt = SHIPPED
    trained_through: NonNegativeInt = 0  # newest sample it was fitted to
    samples: NonNegativeInt = 0  # that champion and challenger were compared on
    champion_error: float | None = None
    challenger_error: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    number: int
    path: Path
    state: VersionState
    record: Record
    detail: str = ""


class Current(_Document):
    """The pointer: what should serve. `held` keeps refits from replacing it."""

    number: NonNegativeInt = SHIPPED
    held: bool = False
    base_sha256: str = ""


class VersionStore:
    """The versions of one instance."""

    def __init__(self, folder: Path, shipped: Path) -> None:
        self._folder = folder
        self._shipped = shipped
        self._checked: dict[int, tuple[tuple[int, ...], str]] = {}
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def shipped(self) -> Path:
        return self._shipped

    def base_sha256(self) -> str:
        """Names the shipped model; empty where there is none."""
        try:
            return hashlib.sha256((self._shipped / MANIFEST).read_bytes()).hexdigest()
        except OSError:
            return ""

    def current(self) -> Current:
        """What should serve; the shipped model where the pointer is missing, damaged or of another base."""
        base = self.base_sha256()
        path = self._folder / "current"
        try:
            pointer = Current.model_validate_json(_read(path))
        except FileNotFoundError:
            return Current(base_sha256=base)
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, the shipped model serves: %s", path, error)
            return Current(base_sha256=base)
        return pointer if pointer.base_sha256 == base else Current(base_sha256=base)

    def versions(self) -> list[Version]:
        """All versions, the shipped one first."""
        base = self.base_sha256()
        shipped = Version(SHIPPED, self._shipped, "sound", Record(base_sha256=base, reason="shipped"))
        return [shipped, *(self._version(number, base) for number in self._numbers())]

    def serving(self) -> Version:
        """The current version, or the newest sound one before it. Never a damaged one."""
        wanted = self.current().number
        sound = [version for version in self.versions() if version.state == "sound"]
        return max((v for v in sound if v.number <= wanted), key=lambda v: v.number)

    def roll_back(self, number: int | None, held: bool) -> None:
        """Point at a sound version; None is the newest before that in use. Raises VersionError, OSError."""
        with self._lock:
            sound = [version.number for version in self.versions() if version.state == "sound"]
            told = f"one of {', '.join(map(str, sound))}"
            if number is None:
                serving = self.serving().number
                number = max((earlier for earlier in sound if earlier < serving), default=None)
            if number is None:
                raise VersionError("the shipped model serves: there is no version before it", told)
            if number not in sound:
                raise VersionError("not a sound version of this model", told)
            self._point(Current(number=number, held=held, base_sha256=self.base_sha256()))

    def add(self, artifact: Path, record: Record, still: Callable[[], bool] = lambda: True) -> int | None:
        """Take over the artifact in a folder beside ours and let it serve; its number.

        None, and nothing kept, when the shipped model or the pointer changed while it was being made, or
        `still` no longer holds. Raises VersionError when it is not sound, OSError.
        """
        try:
            verify(artifact)
        except ArtifactError as error:
            raise VersionError(f"the refitted model is not sound: {error}") from error
        with self._lock:
            pointer = self.current()
            stale = record.base_sha256 != self.base_sha256() or self.serving().number != record.parent
            if stale or pointer.held or not still():
                return None
            number = max(self._numbers(), default=SHIPPED) + 1
            _write(artifact / RECORD, record)
            folder = self._folder / "versions"
            folder.mkdir(parents=True, exist_ok=True)
            artifact.rename(folder / str(number))
            sync_folder(folder)
            self._point(Current(number=number, base_sha256=record.base_sha256))
            self._prune(number)
            return number

    def _point(self, pointer: Current) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(self._folder / "current", pointer)

    def _prune(self, serving: int) -> None:
        """Keep the newest; one that cannot be removed is tried again with the next version."""
        for number in self._numbers()[:-KEPT]:
            if number != serving:
                shutil.rmtree(self._folder / "versions" / str(number), ignore_errors=True)

    def _numbers(self) -> list[int]:
        try:
            names = [path.name for path in (self._folder / "versions").iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and int(name) > 0)

    def _version(self, number: int, base: str) -> Version:
        path = self._folder / "versions" / str(number)
        try:
            record = Record.model_validate_json(_read(path / RECORD))
        except (OSError, ValueError) as error:
            return Version(number, path, "damaged", Record(), f"{path / RECORD}: {error}")
        detail = self._damage(number, path)
        if detail:
            return Version(number, path, "damaged", record, detail)
        return Version(number, path, "sound" if record.base_sha256 == base else "other_base", record)

    def _damage(self, number: int, path: Path) -> str:
        """What is wrong with its files; looked at again when one of them changes."""
        stamps: tuple[int, ...] = ()
        for name in _FILES:
            try:
                stat = (path / name).stat()
            except OSError as error:
                return f"{path / name}: {error.strerror}"
            stamps += (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
        known = self._checked.get(number)
        if known is None or known[0] != stamps:
            try:
                verify(path)
                detail = ""
            except ArtifactError as error:
                detail = str(error)
                log.warning("model version %d does not serve: %s", number, detail)
            known = self._checked[number] = (stamps, detail)
        return known[1]

    def condemn(self, number: int, detail: str) -> None:
        """A version that was whole but could not be used does not serve until its files change."""
        if number in self._checked:
            self._checked[number] = (self._checked[number][0], detail)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    return data


def _write(path: Path, document: _Document) -> None:
    write_whole(path, document.model_dump_json(indent=2).encode())
