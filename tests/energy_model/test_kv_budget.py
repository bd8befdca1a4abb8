"""The KV budget and the advice: bounded by pool, rate and promise, moved by them in the right direction."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from energy_worlds import Law
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.kv_advice import Memory, advise
from kvwatt.kv_budget import KvBudget, KvLoad, Reuse, in_flight, kv_budget, largest_batch, reuse_of
from kvwatt.lattice import Floats
from kvwatt.state import EngineShape
from kvwatt_sim.cards import load
from kvwatt_sim.demo.model import cached_model
from kvwattd.recording.lines import RequestLine, encode


class Slower(Law):
    """Each request adds a millisecond."""

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        return np.asarray(super().step_time_s(clock_mhz, batch, kv, prefill) + 1e-3 * batch)


SHAPE = EngineShape(block_size=16, num_blocks=8001, max_num_seqs=256)
REUSE = Reuse(0.6, tuple(float(second) for second in range(0, 300, 10)))
LOAD = KvLoad(1.0, 1.5, 3000.0, 200.0, 8.0, 3100.0, 8000.0)


def budget(load_: KvLoad = LOAD, reuse: Reuse = REUSE, limit_s: float | None = None) -> KvBudget:
    return kv_budget(load_, SHAPE, reuse, Slower(), 1500.0, 0.1, limit_s)


rates = st.floats(0.0, 50.0)


@given(rates, rates, st.floats(1.0, 60.0), st.floats(1.0, 20_000.0), st.floats(0.02, 1.0))
def test_a_budget_fits_the_pool_and_the_promise(
    rate: float, more: float, residence_s: float, context: float, limit_s: float
) -> None:
    """Whatever the load: at least one block and one request, never more than there is, TBT within its limit
    unless one request alone breaks it."""
    wanted = KvLoad(rate, rate + more, context, 100.0, residence_s, context, 2 * context)
    found = budget(wanted, limit_s=limit_s)
    assert 1 <= found.in_use_blocks <= 8000
    assert found.in_use_blocks + found.kept_blocks == 8000
    assert 1 <= found.max_seqs <= SHAPE.max_num_seqs
    assert 0.0 <= found.hit_ratio <= REUSE.share
    if found.max_seqs > 1:
        assert found.tbt_s <= limit_s


def test_more_traffic_takes_more_of_the_pool_and_finds_less() -> None:
    """As the rate moves the line between use and prefixes moves with it."""
    found = [budget(replace(LOAD, rate_per_s=r, rate_upper_per_s=1.5 * r)) for r in (0.2, 0.5, 1.0, 2.0)]
    assert [f.in_use_blocks for f in found] == sorted(f.in_use_blocks for f in found)
    assert [f.hit_ratio for f in found] == sorted((f.hit_ratio for f in found), reverse=True)
    assert [f.prefill_w for f in found] == sorted(f.prefill_w for f in found)


def test_a_tight_promise_bounds_the_batch() -> None:
    """The largest batch is the one whose step keeps the limit, and the reason names it."""
    room = largest_batch(Slower(), 1500.0, 3000.0, 0.05, 256)
    one = np.ones(1)
    within = Slower().step_time_s(1500 * one, room * one, room * 3000 * one, 0 * one)[0] * 1.1
    beyond = Slower().step_time_s(1500 * one, (room + 1) * one, (room + 1) * 3000 * one, 0 * one)[0] * 1.1
    assert within <= 0.05 < beyond
    assert largest_batch(Slower(), 1500.0, 3000.0, None, 256) == 256
    assert "bound by TBT" in budget(limit_s=0.03).reason
    assert "bound by the rate" in budget().reason


def test_in_flight_is_littles_law_with_room() -> None:
    """Twelve on average at peak, and two standard deviations."""
    assert in_flight(LOAD) == pytest.approx(12.0 + 2.0 * 12.0**0.5)


def test_reuse_is_read_from_a_trace() -> None:
    """Half of the second prompt was sent ten seconds before; only prefixes count."""
    reuse = reuse_of([(0.0, [1, 2, 3, 4]), (10.0, [1, 2, 8, 4])], 16)
    assert reuse.share == pytest.approx(2 / 8)
    assert reuse.hit_ratio(1e9, 1.0) == reuse.share
    assert reuse.hit_ratio(5.0, 1.0) == 0.0
    assert reuse_of([(0.0, [1])], 16).hit_ratio(1e9, 1.0) == 0.0


@pytest.mark.parametrize(("share", "after"), [(1.5, (0.0, 1.0)), (0.5, (1.0,)), (0.5, (2.0, 1.0))])
def test_impossible_reuse_is_refused(share: float, after: tuple[float, ...]) -> None:
    """A share beyond one, or times that do not ascend."""
    with pytest.raises(ValueError, match="accepted"):
        Reuse(share, after)


def test_advice_names_option_value_and_reason() -> None:
    """A stricter promise takes a smaller chunk and batch; less memory is filled, not exceeded."""
    memory = Memory(48e9, 16e9, 57344.0)
    loose = {item.option: item for item in advise(LOAD, REUSE, Slower(), 1500.0, None, memory)}
    tight = {item.option: item for item in advise(LOAD, REUSE, Slower(), 1500.0, 0.06, memory)}
    assert set(loose) == {"--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization"}
    for option in ("--max-num-seqs", "--max-num-batched-tokens"):
        assert int(tight[option].value) <= int(loose[option].value)
    assert int(tight["--max-num-batched-tokens"].value) < int(loose["--max-num-batched-tokens"].value)
    assert 0.3 < float(loose["--gpu-memory-utilization"].value) <= 0.95
    small = advise(LOAD, REUSE, Slower(), 1500.0, None, Memory(20e9, 16e9, 57344.0))
    assert float(small[-1].value) == 0.95
    assert "all there is" in small[-1].reason
    assert len(advise(LOAD, REUSE, Slower(), 1500.0, None, None)) == 2


def _kvwatt(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvwattd", "advise", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_advises_from_numbers_and_from_a_recording(tmp_path: Path) -> None:
    """Both ways, and a clear refusal of neither."""
    folder = str(cached_model(load("l20")))
    numbers = _kvwatt(
        *("--model", folder, "--rate", "1", "--prompt", "1000", "--output", "200"),
        *("--memory", "48", "--weights", "16.6", "--kv-bytes", "57344", "--shared", "0.3"),
    )
    assert numbers.returncode == 0, numbers.stderr
    for option in ("--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization"):
        assert option in numbers.stdout
    path = tmp_path / "kvwatt-2026-01-01.jsonl"
    lines = (RequestLine("chat", 1e9 + 0.5 * n, 1000, 200, 0.2, 0.03, 6.0) for n in range(200))
    path.write_bytes(b"".join(encode(line) for line in lines))
    recorded = _kvwatt(
        *("--model", folder, "--recording", str(path), "--tbt", "0.1", "--servers", "4", "--away", "36")
    )
    assert recorded.returncode == 0, recorded.stderr
    assert "for each of 4 servers with 0.50 requests/s (peak 0.5" in recorded.stdout
    assert "servers that hold a KV pool 1 at 2.00/s" in recorded.stdout
    refused = _kvwatt("--model", folder)
    assert refused.returncode == 2
    assert "--rate 0" in refused.stderr
    path.write_text("{")
    broken = _kvwatt("--model", folder, "--recording", str(path))
    assert broken.returncode == 2
    assert "line 1" in broken.stderr
