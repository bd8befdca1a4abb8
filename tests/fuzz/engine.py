"""Runs a target over many seeded inputs, and says what became of them.

Inputs come from the seed, the target's name and their number alone, so that a finding can be made again:
`Random(f"{seed}/{name}/{number}")`.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from target import Target

LONGEST_S = 1.0  # of processor time: others may hold the machine
REPORTED = 20


class Hang(BaseException):
    """An input that was not read within LONGEST_S; no parser may catch it."""


@dataclass
class Outcome:
    """What became of the inputs of one target."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    hangs: int = 0
    unexpected: int = 0
    crashes: int = 0
    slowest_s: float = 0.0
    took_s: float = 0.0
    findings: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return self.hangs + self.unexpected + self.crashes


def input_of(target: Target, seed: int, number: int) -> bytes:
    """The input with this number."""
    return target.make(random.Random(f"{seed}/{target.name}/{number}"))


class Place(Protocol):
    """Where the number of the input at hand is kept, for whoever outlives this process."""

    value: int


def fuzz(target: Target, seed: int, numbers: range, at: Place | None = None) -> Outcome:
    """Feed the inputs with these numbers, in this process."""
    outcome = Outcome(target.name)
    started_s = time.monotonic()
    logging.disable(logging.CRITICAL)  # refusals are told in logs, a line or more each
    try:
        with _alarms():
            for number in numbers:
                if at is not None:
                    at.value = number
                _one(target, seed, number, outcome)
    finally:
        logging.disable(logging.NOTSET)
    outcome.took_s = time.monotonic() - started_s
    return outcome


def _one(target: Target, seed: int, number: int, outcome: Outcome) -> None:
    data = input_of(target, seed, number)
    outcome.inputs += 1
    before_s = time.monotonic()
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        target.read(data)
    except target.refusals as error:
        outcome.refused += 1
        del error
    except Hang:
        outcome.hangs += 1
        _report(outcome, number, data, "not read within a second")
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        outcome.unexpected += 1
        _report(outcome, number, data, f"{type(error).__name__}: {str(error)[:200]}")
    else:
        outcome.accepted += 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - before_s)


def _report(outcome: Outcome, number: int, data: bytes, what: str) -> None:
    if len(outcome.findings) < REPORTED:
        outcome.findings.append(f"{outcome.name} {number}: {what}: {data[:300]!r}")


@contextmanager
def _alarms() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)
