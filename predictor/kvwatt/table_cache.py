"""A compiled table as one file: numbers behind a header, so that reading it can only fail or give numbers.

    line 1   kvwatt-table 2 <SHA-256 of everything below>
    line 2   upper factor, then the lengths of the three axes and of the clocks
    then     little-endian: axes and idle power as float64, step time and busy power as float32

The hash finds damage, not malice: whatever is read is checked like anything from outside.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
import tempfile
from pathlib import Path

import numpy as np

from kvwatt.compiled import CompiledModel

MAX_TABLE_BYTES = 1 << 28
_MAGIC = b"kvwatt-table 2 "
_MAX_LINE = 200
_MAX_AXIS = 4096


def write_table(path: Path, compiled: CompiledModel) -> None:
    """Replace the file. Raises OSError."""
    sizes = [*map(len, compiled.axes), len(compiled.clocks_mhz)]
    head = " ".join([repr(compiled.upper_factor), *map(str, sizes)]).encode()
    arrays = [np.asarray(side, "<f8").tobytes() for side in (*compiled.axes, compiled.idle_w)]
    arrays += [np.asarray(table, "<f4").tobytes() for table in (compiled.step_s, compiled.busy_w)]
    body = head + b"\n" + b"".join(arrays)
    digest = hashlib.sha256(body).hexdigest().encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(_MAGIC + digest + b"\n" + body)
    Path(file.name).replace(path)


def read_table(path: Path, clocks_mhz: tuple[int, ...]) -> CompiledModel | None:
    """The cached table of these clocks, or None where there is none that can be used."""
    try:
        data = read_regular(path, MAX_TABLE_BYTES)
    except OSError:
        return None
    if not data.startswith(_MAGIC):
        return None
    digest, _, body = data[len(_MAGIC) :].partition(b"\n")
    if digest != hashlib.sha256(body).hexdigest().encode():
        return None
    compiled = _decoded(body, clocks_mhz)
    return compiled if compiled is not None and _consistent(compiled) else None


def read_regular(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; never waits for a pipe's other end. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return data


def _decoded(body: bytes, clocks_mhz: tuple[int, ...]) -> CompiledModel | None:
    line, _, rest = body.partition(b"\n")
    words = line.split(b" ") if len(line) <= _MAX_LINE else []
    try:
        factor, sizes = float(words[0]), [int(word) for word in words[1:]]
    except (ValueError, IndexError):
        return None
    if len(sizes) != 4 or not all(1 < size <= _MAX_AXIS for size in sizes[:3]) or sizes[3] != len(clocks_mhz):
        return None
    cells, clocks = math.prod(sizes[:3]), sizes[3]
    counts = [*sizes, cells * clocks, cells * clocks]
    if len(rest) != 8 * sum(sizes) + 8 * cells * clocks:
        return None
    arrays, at = [], 0
    for count, kind in zip(counts, ("<f8",) * 4 + ("<f4",) * 2, strict=True):
        arrays.append(np.frombuffer(rest, kind, count, at).copy())
        at += arrays[-1].nbytes
    batch, context, prefill, idle_w, step_s, busy_w = arrays
    table = (cells, clocks)
    return CompiledModel(
        clocks_mhz, factor, (batch, context, prefill), step_s.reshape(table), busy_w.reshape(table), idle_w
    )


def _consistent(compiled: CompiledModel) -> bool:
    tables = (compiled.step_s, compiled.busy_w)
    rising = all(axis[0] == 0.0 and bool((np.diff(axis) > 0).all()) for axis in compiled.axes)
    return (
        rising
        and all(bool((np.isfinite(table) & (table > 0)).all()) for table in tables)
        and bool(np.isfinite(compiled.idle_w).all())
        and 1.0 <= compiled.upper_factor <= 10.0
    )
