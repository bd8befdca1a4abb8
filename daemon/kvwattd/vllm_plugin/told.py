"""What the daemon tells the scheduler: one small JSON file, believed while it is fresh.

The daemon replaces the file every few seconds; the scheduler looks once a second. A file that is missing,
too old, too large or not understood tells nothing: the scheduler goes on by what it has seen itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

VERSION = 1
FRESH_S = 10.0
LOOK_S = 1.0
MAX_BYTES = 1 << 20
FILE_NAME = "scheduler.json"
FILE_ENV = "KVWATT_SCHEDULER_FILE"  # default: FILE_NAME beside the tap's socket

Tokens = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
Bound = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class Lengths(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """Output lengths of requests with prompts below `prompt_below` tokens (None: any): ascending quantiles
    at equal steps."""

    tokens: Annotated[list[Tokens], msgspec.Meta(min_length=2, max_length=1024)]
    prompt_below: Tokens | None = None

    def __post_init__(self) -> None:
        if any(a > b for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError("quantiles must ascend")


class StepCost(msgspec.Struct, frozen=True):
    """Seconds of a step at the top clock: base + per request + per KV token + per prompt token."""

    base_s: Positive
    request_s: Share
    kv_token_s: Share
    prompt_token_s: Share


class Promises(msgspec.Struct, frozen=True):
    """For throttLL'eM's admission: limits, and what a step takes at the top clock."""

    step: StepCost
    tbt_s: Positive | None = None
    e2e_s: Positive | None = None


class Told(msgspec.Struct, frozen=True):
    """For one engine. `engine` None: the only one of its model."""

    model: str
    instance: str = ""
    engine: int | None = None
    lengths: list[Lengths] = []
    budget_blocks: Bound | None = None
    max_seqs: Bound | None = None
    order: Literal["arrival", "smallest"] = "arrival"
    age_s: Positive = 10.0
    promises: Promises | None = None


class Message(msgspec.Struct, frozen=True):
    """The file. `written_s`: the host's monotonic clock."""

    version: int
    written_s: float
    engines: list[Told] = []


def read(path: Path) -> Message:
    """Raises OSError, ValueError (too large, another version) or msgspec's DecodeError, a ValueError."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes")
    message = msgspec.json.decode(content, type=Message)
    if message.version != VERSION:
        raise ValueError(f"{path} is of version {message.version}; version {VERSION} is understood")
    return message


def meant(message: Message, instance: str, model: str, engine: int) -> Told | None:
    """What is for this engine: by name where it has one, else by model and engine if that is one only."""
    if instance:
        found = [t for t in message.engines if t.instance == instance and t.engine in (None, engine)]
    else:
        found = [t for t in message.engines if t.model == model and t.engine in (None, engine)]
    return found[0] if len(found) == 1 else None


def lengths_for(told: Told, prompt_tokens: int) -> list[int] | None:
    """The class of the prompt."""
    for item in told.lengths:
        if item.prompt_below is None or prompt_tokens < item.prompt_below:
            return item.tokens
    return None


class Reader:
    """Looks at the file once a second. Times are of the monotonic clock and passed in."""

    def __init__(self, path: Path, instance: str, model: str, engine: int) -> None:
        self._path, self._who = path, (instance, model, engine)
        self._next_s = -1.0
        self._stamp: tuple[int, int] | None = None
        self._written_s = -FRESH_S
        self._told: Told | None = None
        self.errors = 0

    def told(self, now_s: float) -> Told | None:
        """What holds now; None: nothing fresh."""
        if now_s >= self._next_s:
            self._next_s = now_s + LOOK_S
            self._look()
        return self._told if -LOOK_S <= now_s - self._written_s <= FRESH_S else None

    def _look(self) -> None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 (a Path's stat costs twice as much)
        except OSError:
            self._stamp, self._told = None, None
            return
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            message = read(self._path)
        except (OSError, ValueError, RecursionError):
            self.errors += 1
            self._told = None
            return
        self._told, self._written_s = meant(message, *self._who), message.written_s
