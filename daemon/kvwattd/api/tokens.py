"""Bearer tokens: a TOML file of names, scopes and SHA-256 digests, so that the file itself opens nothing.

    [[token]]
    name = "operator"        # who, in the audit log
    scope = "control"        # "read", or "control", which may read too
    sha256 = "9f86d0818..."  # of the token; `kvwatt token` makes one and adds its entry

The file is read again when it changes. A version that cannot be used leaves the one before it in force, with
an alarm; a file that is gone permits nobody. No token is kept, logged or part of an error.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import stat
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvwattd.config_errors import problems_from
from kvwattd.config_values import InstanceName

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024
NEXT = "make one: kvwatt token NAME --scope control --file FILE"


class Scope(StrEnum):
    """What a token permits; control includes read."""

    READ = "read"
    CONTROL = "control"


class Entry(BaseModel):
    """One token; `name` stands in the audit log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: InstanceName
    scope: Scope
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    token: tuple[Entry, ...] = ()


class TokenFileError(Exception):
    """The file cannot be used; holds no part of any token."""


def digest(token: str) -> str:
    """What stands in the file for a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def parse_tokens(text: str) -> tuple[Entry, ...]:
    """The entries of a file's text. Raises TokenFileError, which shows no value: it might be a token."""
    try:
        entries = _Table(**tomllib.loads(text)).token
    except ValidationError as error:
        told = "; ".join(f"{p.key}: accepted: {p.accepted}" for p in problems_from(error, _Table))
        raise TokenFileError(told) from None
    except (ValueError, RecursionError) as error:
        raise TokenFileError(f"is no TOML: {error}; accepted: [[token]] with name, scope, sha256") from None
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TokenFileError(f"the name {twice[0]!r} stands there twice; accepted: a name for each token")
    return entries


def read_tokens(path: Path, *, any_owner: bool = False) -> tuple[Entry, ...]:
    """The entries of a file that belongs to this user or root and that nobody else may read.

    Raises TokenFileError; FileNotFoundError where there is none.
    """
    try:
        with path.open("rb") as file:
            facts, data = os.fstat(file.fileno()), file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TokenFileError(f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(facts.st_mode) or len(data) > MAX_BYTES:
        raise TokenFileError(f"is no file of at most {MAX_BYTES} bytes")
    if facts.st_mode & 0o077:
        raise TokenFileError(f"may be read by others (mode {facts.st_mode & 0o777:04o}): chmod 600 {path}")
    if not any_owner and facts.st_uid not in (0, os.geteuid()):
        raise TokenFileError(f"belongs to user id {facts.st_uid}: chown it to the daemon's user, or root")
    try:
        return parse_tokens(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise TokenFileError("is not UTF-8") from None


def add_entry(path: Path, name: str, scope: str, token: str) -> None:
    """Add a token to a file, made where it is missing, all or nothing. Raises TokenFileError, OSError."""
    try:
        read_tokens(path, any_owner=os.geteuid() == 0)
        before, owner = path.read_text(encoding="utf-8"), path.stat()
    except FileNotFoundError:
        before, owner = "", None
    entry = f'[[token]]\nname = {json.dumps(name)}\nscope = "{scope}"\nsha256 = "{digest(token)}"\n'
    text = f"{before.rstrip()}\n\n{entry}" if before.strip() else entry
    parse_tokens(text)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if owner is not None and owner.st_uid != os.geteuid():
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(text)
    partial.replace(path)


@dataclass(frozen=True, slots=True)
class TokenState:
    """What is in force; `alarm` says why it is not the newest version of the file."""

    entries: tuple[Entry, ...] = ()
    stamp: tuple[int, int, int] | None = None
    alarm: str | None = None


class TokenFile:
    """The tokens in a file. Methods read the disk: call them in a thread. `path` None: there are none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._state = TokenState()  # replaced as a whole: several threads may look at it

    @property
    def alarm(self) -> str | None:
        """Why the newest version of the file is not in force."""
        return self._state.alarm

    @property
    def empty(self) -> bool:
        return not self._state.entries

    def load(self) -> None:
        """Read it for the first time. Raises TokenFileError, which tells the path and the next step."""
        if self.path is None:
            return
        try:
            self._state = TokenState(read_tokens(self.path), _stamp(self.path))
        except (TokenFileError, FileNotFoundError) as error:
            told = "does not exist" if isinstance(error, FileNotFoundError) else str(error)
            raise TokenFileError(f"api.token_file {self.path}: {told}; {NEXT}") from None

    def refresh(self) -> None:
        """Read it again if it has changed. Never raises: what cannot be used leaves an alarm."""
        if self.path is None:
            return
        before, stamp = self._state, _stamp(self.path)
        if stamp == before.stamp:
            return
        try:
            self._state = TokenState(read_tokens(self.path), stamp)
            log.info("api: %d tokens in force from %s", len(self._state.entries), self.path)
        except FileNotFoundError:
            self._state = TokenState((), stamp, f"{self.path} is gone: no token is valid")
        except TokenFileError as error:
            self._state = TokenState(before.entries, stamp, f"{self.path} {error}; the tokens before stay")
        if self._state.alarm is not None:
            log.error("api: token file: %s", self._state.alarm)

    def identify(self, presented: str) -> Entry | None:
        """Whose token it is; compares with every entry, each in constant time."""
        self.refresh()
        given, found = digest(presented), None
        for entry in self._state.entries:
            if hmac.compare_digest(given, entry.sha256):
                found = entry
        return found


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes with content, owner and mode; None where it cannot be seen."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_ctime_ns, facts.st_size
