"""What can be known of one process instance: plain values."""

from __future__ import annotations

from dataclasses import dataclass


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
