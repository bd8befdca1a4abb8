from __future__ import annotations

from pathlib import Path

import pytest

from kvwatt_sim import traces
from kvwatt_sim.traces import TraceError, TraceRequest

GOOD = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:47.9305901,396,109
2023-11-16 18:16:46,879,55
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_azure_rows(tmp_path: Path) -> None:
    """Times count from the first request and token counts are read as they stand."""
    requests = traces.load_azure(_write(tmp_path, GOOD))
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [(374, 44), (396, 109), (879, 55)]
    assert [r.arrival_s for r in requests] == pytest.approx([0.0, 1.25, 59.31941])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; expected the columns TIMESTAMP"),
        ("TIMESTAMP,Context,GeneratedTokens\n", "line 1: no column ContextTokens; found TIMESTAMP, Context"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        (GOOD + "yesterday,1,1\n", "line 5: TIMESTAMP 'yesterday' is not a time"),
        (GOOD + "2023-11-16 18:17:00,many,1\n", "line 5: ContextTokens 'many' is not a token count"),
        (GOOD + "2023-11-16 18:17:00,5,0\n", "line 5: GeneratedTokens '0' is not a token count"),
        (GOOD + "2023-11-16 18:17:00,5\n", "line 5: 2 values; expected 3"),
        (GOOD + "2023-11-16 18:15:00,5,5\n", "line 5: TIMESTAMP '2023-11-16 18:15:00' lies before"),
    ],
)
def test_bad_files_are_refused_with_place_and_value(tmp_path: Path, text: str, message: str) -> None:
    """A file that is not a trace is refused, naming the line, the column and the value."""
    with pytest.raises(TraceError) as caught:
        traces.load_azure(_write(tmp_path, text))
    assert message in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """A missing file and a binary file are refused with the path in the message."""
    with pytest.raises(TraceError, match=r"absent\.csv: cannot be read"):
        traces.load_azure(tmp_path / "absent.csv")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match=r"binary\.csv: not a CSV text file"):
        traces.load_azure(binary)


def _steady(count: int) -> tuple[TraceRequest, ...]:
    return tuple(TraceRequest(index * 0.1, 100, 10) for index in range(count))


def test_thinning_keeps_about_the_ratio_and_repeats() -> None:
    """Thinning keeps each request with the given probability, the same ones for the same seed."""
    requests = _steady(4000)
    kept = traces.thin(requests, 0.25, seed=5)
    assert 900 < len(kept) < 1100
    assert kept == traces.thin(requests, 0.25, seed=5)
    assert set(kept) < set(requests)


def test_rate_is_what_was_asked_for() -> None:
    """A trace brought to a rate has that rate, whether it was slower or faster before."""
    requests = _steady(4000)
    assert traces.mean_rate_per_s(traces.at_rate(requests, 4.0, seed=1)) == pytest.approx(4.0, rel=0.1)
    assert traces.mean_rate_per_s(traces.at_rate(requests, 25.0, seed=1)) == pytest.approx(25.0)


def test_window_counts_from_its_start() -> None:
    """A window holds the arrivals inside it, counted from its start."""
    arrivals = [r.arrival_s for r in traces.window(_steady(100), duration_s=1.0, start_s=2.05)]
    assert arrivals == pytest.approx([0.05 + 0.1 * index for index in range(10)])


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    """A thinning ratio outside (0, 1] is refused."""
    with pytest.raises(ValueError, match="ratio"):
        traces.thin(_steady(10), ratio, seed=0)
