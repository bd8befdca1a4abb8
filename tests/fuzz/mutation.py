"""Seeded mutation of inputs: of bytes and lines as they are, and of the values inside a document."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

# What breaks parsers: signs, edges of integer and float types, other notations, nothing at all.
_ODD = b"0 -0 -1 1 0.5 NaN nan +Inf -Inf inf 1e308 1e400 -1e400 1e-400 2147483648 9007199254740993 1_000"
_ODD += b" 18446744073709551616 0x10 0o7 1e3 .5 5. 00 +3 --1 true null"
NUMBERS = (*_ODD.split(), b"", b"9" * 400, b"9" * 5000, "٣".encode())
TOKENS = (
    b"\x00",
    b"\n",
    b"\r\n",
    b"\n\n",
    b'"',
    b"'",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"=",
    b",",
    b" ",
    b"\t",
)
TOKENS += (b"#", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", "é".encode(), b"%s", b"../", b"[" * 3000)
LITERALS = (*NUMBERS, b'""', b"[]", b"{}", b'"x"', b'"../../etc/passwd"', b"[[1]]", b"{a = 1}", b"1979-05-27")
_LITERAL = re.compile(rb"[=:,]\s*([^=:,\n]+)")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_DEEP = 2000

Document = object


def mutate_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to three changes; `others` are inputs to splice with."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_BYTE_CHANGES)(rng, data, others)
    return data


def _slice(rng: random.Random, data: bytes, longest: int = 40) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(start + rng.randrange(longest), len(data))


def _flip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if not data:
        return bytes([rng.randrange(256)])
    place = rng.randrange(len(data))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _cut(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _slice(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _slice(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(TOKENS) + data[place:]


def _number(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    found = _NUMBER.search(data, rng.randrange(len(data) + 1)) or _NUMBER.search(data)
    if found is None:
        return _insert(rng, data, others)
    return data[: found.start()] + rng.choice(NUMBERS) + data[found.end() :]


def _value(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """What stands behind an equals sign, a colon or a comma, replaced by another literal."""
    found = _LITERAL.search(data, rng.randrange(len(data) + 1)) or _LITERAL.search(data)
    if found is None:
        return _insert(rng, data, others)
    return data[: found.start(1)] + rng.choice(LITERALS) + data[found.end() :]


def _truncate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _lines(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Lines left out, doubled or moved."""
    lines = data.split(b"\n")
    line = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.choice((0, 1, 1, 2))):
        lines.insert(rng.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


_BYTE_CHANGES = (_flip, _cut, _repeat, _insert, _number, _number, _value, _value, _truncate, _lines)
_BYTE_CHANGES += (_lines, _splice)


def odd_value(rng: random.Random) -> Document:
    """A value that hardly any field accepts."""
    return rng.choice(_ODD_VALUES)()


def _nested() -> Document:
    value: Document = []
    for _ in range(_DEEP // 10):
        value = [value]
    return value


_ODD_VALUES = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 0.5,
    lambda: 1e308,
    lambda: 10**30,
    lambda: 10**400,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "x" * 300,
    lambda: "\x00\u202e%s",
    lambda: "../../etc/passwd",
    lambda: "1",
    list,
    dict,
    lambda: [[1.0]],
    lambda: {"a": None},
    _nested,
)


def mutate_document(rng: random.Random, document: Document) -> Document:
    """The document with one to three of its values changed, dropped, doubled or put elsewhere; in place."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.03 or not isinstance(document, dict | list) or not document:
            return odd_value(rng)
        _change_inside(rng, document)
    return document


def _change_inside(rng: random.Random, document: Document) -> None:
    inner = document
    while isinstance(inner, dict | list) and inner:
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        below = inner[key]
        if not (isinstance(below, dict | list) and below) or rng.random() < 0.25:
            _change(rng, inner, key)
            return
        inner = below


def _change(rng: random.Random, inner: dict | list, key: object) -> None:  # type: ignore[type-arg]
    kind = rng.randrange(8)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, list):
        inner.extend(inner * rng.choice((1, 1, 100)))
    elif kind == 1:
        inner[rng.choice(("", "extra", str(key).upper(), "__class__"))] = inner[key]
    elif kind == 2 and isinstance(inner[key], int | float) and abs(inner[key]) < 1e15:
        inner[key] = inner[key] * rng.choice((-1, 0.5, 2, 1000)) + rng.choice((0, 1, -1, 1e-9))
    elif kind == 3:
        inner[key] = str(inner[key])
    else:
        inner[key] = odd_value(rng)
