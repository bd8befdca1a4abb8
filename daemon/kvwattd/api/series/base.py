"""What a series of /metrics is, and the usual kinds of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Samples = Iterable[tuple[tuple[str, ...], float | None]]


@dataclass(frozen=True, slots=True)
class Series(Generic[T]):
    """`samples` gives label values (beside instance and gpu) with a value; None is unknown: no sample."""

    name: str
    help: str
    samples: Callable[[T], Samples]
    labels: tuple[str, ...] = ()
    counter: bool = False


def one(name: str, help_: str, value: Callable[[T], float | None], *, counter: bool = False) -> Series[T]:
    return Series(name, help_, lambda view: [((), value(view))], counter=counter)


def count(name: str, help_: str, value: Callable[[T], float | None]) -> Series[T]:
    return one(name, help_, value, counter=True)


def states(
    name: str, help_: str, label: str, states: Iterable[str], current: Callable[[T], str]
) -> Series[T]:
    """One sample per state, 1 for the current one: the usual way to show an enumeration."""
    known = tuple(str(state) for state in states)
    return Series(name, help_, lambda v: [((s,), float(s == str(current(v)))) for s in known], (label,))


def hertz(clock_mhz: int | None) -> float | None:
    return None if clock_mhz is None else clock_mhz * 1e6
