"""The Prometheus text format, as far as an engine's page needs it: only wanted lines are looked at.

A page of 50 KB has some 600 lines of which about 170 matter. Lines are chosen by a byte prefix, and the part
before the value (name and labels), which repeats from scrape to scrape, is parsed once and remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite

from kvwattd.telemetry.layouts import HISTOGRAMS, SCALARS

SUFFIXES = ("_bucket", "_sum", "_count")
MAX_VALUE = 2.0**53  # beyond this a float counter no longer counts

MAX_HEAD_BYTES = 4096  # remembered ones must not fill the memory

_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")


class Vocabulary:
    """The series of one engine that are read; names stand without the engine's `prefix`."""

    def __init__(self, prefix: str, scalars: Iterable[str], histograms: Iterable[str]) -> None:
        parts = {name + suffix: (name, suffix) for name in histograms for suffix in SUFFIXES}
        self.prefix = prefix
        self.start = prefix.encode()
        self.parts = {**parts, **{name: (name, "") for name in scalars}}
        self.wanted = frozenset(name.encode() for name in self.parts)


VLLM = Vocabulary("vllm:", SCALARS, HISTOGRAMS)


class MetricsError(Exception):
    """A page that must not be used for control.

    `kind`: not_vllm, truncated, missing_series, bad_value, unknown_engine, ambiguous_engine;
    `names`: the series or engines concerned.
    """

    def __init__(self, kind: str, names: tuple[str, ...], detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.names = names
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Series:
    """Name and labels of one line; `part` is the histogram suffix or empty."""

    name: str
    part: str
    engine: str | None
    model_name: str | None
    labels: dict[str, str]
    bound: float  # upper bound of a histogram bucket, else 0


def samples(page: bytes, words: Vocabulary = VLLM) -> Iterator[tuple[Series, bytes]]:
    """Every wanted sample of the page with its value still as bytes.

    Raises MetricsError truncated when the page does not end with a newline, not_vllm when it is empty.
    """
    if not page.strip():
        raise MetricsError("not_vllm", (), "the page is empty")
    if not page.endswith(b"\n"):
        raise MetricsError("truncated", (), "the page does not end with a newline")
    start, wanted = words.start, words.wanted
    for line in page.split(b"\n"):
        if line.startswith(start):
            head, _, value = line.rpartition(b" ")
            name = head[len(start) :].partition(b"{")[0].rstrip()
            if name in wanted:
                if len(head) > MAX_HEAD_BYTES:
                    shown = words.prefix + name.decode()
                    raise MetricsError("bad_value", (shown,), f"labels of {shown} take {len(head)} bytes")
                yield _series(head, words), value


@lru_cache(maxsize=4096)
def _series(head: bytes, words: Vocabulary) -> Series:
    """Parse `prefix:name{labels}` of a series that is wanted."""
    raw_name, _, rest = head[len(words.start) :].partition(b"{")
    name = raw_name.rstrip().decode()
    base, part = words.parts[name]
    labels = _labels(name, rest)
    bound = number(name, labels.get("le", "").encode(), infinite=True) if part == "_bucket" else 0.0
    return Series(base, part, labels.get("engine"), labels.get("model_name"), labels, bound)


def _labels(name: str, raw: bytes) -> dict[str, str]:
    if not raw:
        return {}
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MetricsError("bad_value", (name,), f"labels of {name} are not UTF-8") from error
    body, brace, tail = text.rpartition("}")
    labels: dict[str, str] = {}
    position = 0
    while brace and not tail.strip() and position < len(body):
        match = _LABEL.match(body, position)
        if match is None or match[1] in labels:
            break
        labels[match[1]] = _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], match[2])
        position = match.end()
    if not brace or tail.strip() or position != len(body):
        raise MetricsError("bad_value", (name,), f"labels of {name} cannot be read: {text[:80]!r}")
    return labels


def number(name: str, raw: bytes, *, infinite: bool = False) -> float:
    """A finite number from 0 to 2**53 (`infinite` also accepts +Inf), else MetricsError bad_value."""
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    readable = value >= 0.0 and b"_" not in raw
    if readable and (value <= MAX_VALUE if isfinite(value) else infinite and value == inf):
        return value
    shown = raw[:40].decode("utf-8", "replace")
    raise MetricsError("bad_value", (name,), f"{name} is {shown!r}, need a finite number >= 0")
