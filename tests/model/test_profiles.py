"""Profile tables: accepted layouts, and errors that name row, column and value."""

from __future__ import annotations

import math

import pytest

from kvwatt.profiles import (
    COLUMNS,
    ProfileError,
    ProfileRow,
    format_row,
    parse_csv,
    parse_notes,
    parse_points,
    table_of,
)

HEADER = ",".join(COLUMNS)


def test_a_written_row_is_read_back() -> None:
    """Writing and reading keep every value, and unknown power stays unknown."""
    row = ProfileRow(1500, 16, 16384.5, 0, 0.0251234, math.nan, 2, "decode")
    text = f"# hardware: NVIDIA L20\n# vllm_version: 0.32.0\n{HEADER}\n{','.join(format_row(row))}\n"
    (again,) = parse_csv(text)
    assert again.kv_tokens == 16384.5
    assert math.isnan(again.power_w)
    assert (again.tp, again.kind, again.step_time_s) == (2, "decode", 0.0251234)
    assert parse_notes(text) == {"hardware": "NVIDIA L20", "vllm_version": "0.32.0"}


def test_published_layouts_are_read() -> None:
    """Decode, prefill and idle tables in the published columns become rows."""
    decode = "freq_mhz,batch,context_tokens,step_seconds,power_w_busy_est\n900,4,256,0.026,114\n"
    prefill = "freq_mhz,input_tokens,seconds\n900,512,0.18\n"
    idle = "state,power_w,wake_s\nactive_idle@900,71.0,0\nparked,36,0.02\n"
    table = table_of([*parse_csv(decode), *parse_csv(prefill), *parse_csv(idle)])
    assert list(table.kv_tokens) == [1024, 0]
    assert list(table.prefill_tokens) == [0, 512]
    assert list(table.idle_power_w) == [71.0]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("x,1,1,1,0,0.02,100,decode", "line 2: clock_mhz must be a number, got 'x'"),
        ("900,1,1,1,0,nan,100,decode", "step_time_s must be finite"),
        ("900,1,-1,1,0,0.02,100,decode", "decode_batch must be finite and >= 0"),
        ("900,1,1,1,0,0,100,decode", "step_time_s"),
        ("900,1,1,1,0,,100,decode", "step_time_s must be a number"),
        ("900,1,1,1,0,0.02,100,dance", "kind must be one of decode, prefill, mixed, idle"),
        ("900,0,1,1,0,0.02,100,decode", "tp"),
        ("900,1,0,0,0,,,idle", "power_w"),
    ],
)
def test_bad_cells_are_named(cells: str, message: str) -> None:
    """The error tells the line, the column, the value and what is accepted."""
    with pytest.raises(ProfileError, match=message):
        parse_csv(f"{HEADER}\n{cells}\n", "profile.csv")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", f"{HEADER}\n"])
def test_empty_or_unknown_tables_are_refused(text: str) -> None:
    """No rows or unknown columns: an error that says what is accepted."""
    with pytest.raises(ProfileError):
        parse_csv(text)


def test_two_tensor_parallel_sizes_need_a_choice() -> None:
    """A model is for one tp."""
    rows = [ProfileRow(900, 1, 1, 0, 0.1, 100, tp=tp) for tp in (1, 2)]
    with pytest.raises(ProfileError, match=r"\[1, 2\]"):
        table_of(rows)
    assert table_of(rows, tp=2).tp == 2


def test_points_need_no_measurements() -> None:
    """Points to predict may come in any of the three layouts."""
    _, _, points = parse_points("freq_mhz,batch,context_tokens\n900,4,256\n")
    assert points == [(900.0, 4.0, 1024.0, 0.0)]
    _, _, points = parse_points("freq_mhz,input_tokens\n900,512\n")
    assert points == [(900.0, 0.0, 0.0, 512.0)]
    with pytest.raises(ProfileError, match="unknown columns"):
        parse_points("speed\n1\n")
