"""Whatever bytes arrive, the parser answers with a valid snapshot or a MetricsError."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_pages import read_page

from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.telemetry.vllm_metrics import MetricsError, parse, self_test

VALUES = st.sampled_from([b"NaN", b"-1", b"+Inf", b"1e400", b"0", b"3", b"2.5", b"99999999999999999999", b""])


@pytest.fixture(scope="module")
def page() -> bytes:
    return read_page()


def assert_valid(snapshot: EngineSnapshot) -> None:
    assert 0 <= snapshot.kv_usage <= 1
    assert min(snapshot.running, snapshot.waiting, snapshot.waiting_for_capacity) >= 0
    assert min(snapshot.block_size, snapshot.num_blocks) >= 1
    for field in snapshot.__slots__:
        value = getattr(snapshot, field)
        if isinstance(value, Histogram):
            assert isfinite(value.sum) and value.sum >= 0 and value.cumulative[-1] == value.count
            assert all(a <= b for a, b in pairwise(value.cumulative))
        elif isinstance(value, float):
            assert isfinite(value) and value >= 0


def check(mutated: bytes) -> None:
    for read in (lambda: assert_valid(parse(mutated, 1.0)), lambda: self_test(mutated)):
        try:
            read()
        except MetricsError as error:
            assert error.kind and error.detail


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_values_never_pass_unchecked(page: bytes, data: st.DataObject) -> None:
    """Values replaced at random never give an invalid snapshot."""
    lines = page.split(b"\n")
    wanted = [i for i, line in enumerate(lines) if line.startswith(b"vllm:")]
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.sampled_from(wanted))
        lines[index] = lines[index].rpartition(b" ")[0] + b" " + data.draw(VALUES)
    check(b"\n".join(lines))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_bytes_never_crash(page: bytes, data: st.DataObject) -> None:
    """Bytes overwritten, cut out, doubled or inserted at random never raise anything but MetricsError."""
    mutated = bytearray(page)
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(mutated)))
        end = min(start + data.draw(st.integers(0, 400)), len(mutated))
        repeat = data.draw(st.sampled_from([0, 1, 2]))
        mutated[start:end] = data.draw(st.binary(max_size=30)) + bytes(mutated[start:end]) * repeat
    check(bytes(mutated))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_lines_lost_or_moved_never_pass_unchecked(page: bytes, data: st.DataObject) -> None:
    """Lines dropped, doubled or moved never give an invalid snapshot."""
    lines = page.split(b"\n")
    for _ in range(data.draw(st.integers(1, 5))):
        line = lines.pop(data.draw(st.integers(0, len(lines) - 1)))
        for _ in range(data.draw(st.integers(0, 2))):
            lines.insert(data.draw(st.integers(0, len(lines))), line)
    check(b"\n".join(lines))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_random_bytes_are_refused(garbage: bytes) -> None:
    """Random bytes are never a snapshot."""
    with pytest.raises(MetricsError):
        parse(garbage, 1.0)
