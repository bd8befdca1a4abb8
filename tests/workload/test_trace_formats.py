"""Mooncake traces, and what any loader does with files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvwatt_sim.recording import load_recording
from kvwatt_sim.traces import TraceError, TraceRequest, load_azure, load_mooncake

GOOD = (
    '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": []}\n'
    '{"timestamp": 30535, "input_length": 10, "output_length": 1}\n'
)
REQUEST = (
    '{"kind":"request","instance":"a","arrival_s":5,"prompt_tokens":9,"output_tokens":2,'
    '"ttft_s":1,"tbt_s":1,"e2e_s":2}'
)
RUN = (
    '{"kind":"run","version":1,"at_s":1,"instance":"a","model":"m","gpu":"g","gpus":1,"default_mhz":1000,'
    '"max_num_seqs":8,"max_num_batched_tokens":64,"num_blocks":10,"block_size":16}'
)


def _write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "trace"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_reads_mooncake_lines(tmp_path: Path) -> None:
    """Milliseconds count from the first request; prefix hashes are not used."""
    expected = (TraceRequest(0.0, 6955, 52), TraceRequest(3.053, 6472, 26), TraceRequest(3.053, 10, 1))
    assert load_mooncake(_write(tmp_path, GOOD)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no requests"),
        ("[1, 2]\n", "line 1: Expected `object`"),
        ('{"timestamp": 1, "input_length": 5}\n', "line 1: Object missing required field `output_length`"),
        (GOOD + '{"timestamp": "x", "input_length": 5, "output_length": 5}', "line 4: Expected `int`"),
        (GOOD + '{"timestamp": 5, "input_length": 5, "output_length": 5}', "line 4: timestamp 5 lies before"),
        (GOOD + '{"timestamp": 90000, "input_length": 0, "output_length": 5}', "line 4: input_length 0"),
    ],
)
def test_bad_mooncake_lines_are_told_with_place(tmp_path: Path, text: str, message: str) -> None:
    """What is no trace is refused with the line and what is wrong there."""
    with pytest.raises(TraceError) as caught:
        load_mooncake(_write(tmp_path, text))
    assert message in str(caught.value)


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)
MOONCAKE = st.dictionaries(st.sampled_from(("timestamp", "input_length", "output_length")), VALUES).map(
    json.dumps
)
RECORDED = st.builds(
    lambda base, changes: json.dumps({**json.loads(base), **changes}),
    st.sampled_from((RUN, REQUEST)),
    st.dictionaries(st.sampled_from(tuple({**json.loads(RUN), **json.loads(REQUEST)})), VALUES, max_size=2),
)


@pytest.mark.parametrize("loader", [load_azure, load_mooncake, load_recording])
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    content=st.one_of(
        st.binary(max_size=60), st.lists(st.one_of(MOONCAKE, RECORDED), max_size=4).map("\n".join)
    )
)
def test_any_file_is_a_trace_or_a_clear_error(
    loader: Callable[[Path], object], content: str | bytes, tmp_path: Path
) -> None:
    """Whatever lies in a file, a loader gives requests or one TraceError that begins with the path."""
    path = _write(tmp_path, content)
    try:
        assert loader(path)
    except TraceError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize("loader", [load_azure, load_mooncake, load_recording])
def test_missing_files_are_refused(loader: Callable[[Path], object], tmp_path: Path) -> None:
    """A path with nothing behind it is told as such."""
    with pytest.raises(TraceError, match=r"cannot be read: No such file"):
        loader(tmp_path / "nothing")
