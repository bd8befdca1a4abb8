"""Profiling the simulated plant: true to the laws, repeatable, and readable by the trainer."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

import pytest

from kvwatt.profiles import ProfileRow, parse_csv
from kvwatt_sim import gpu
from kvwatt_sim.cards import load
from kvwatt_sim.virtual_profile import spread, virtual_profile, write_profile

CARD = load("l20")


def truth(row: ProfileRow) -> float:
    return gpu.step_time_s(CARD, row.clock_mhz, row.decode_batch, row.kv_tokens, row.prefill_tokens)


def test_without_noise_it_is_the_law() -> None:
    """Below the power cap a row without noise is exactly what the laws say."""
    rows = virtual_profile(CARD, seed=1, noise=0.0, clocks=(900, 1500))
    busy = [row for row in rows if row.kind != "idle"]
    assert len(busy) > 50
    for row in busy:
        assert row.step_time_s == truth(row)
        activity = gpu.activity(CARD, row.clock_mhz, row.decode_batch, row.kv_tokens, row.prefill_tokens)
        assert row.power_w == gpu.power_w(CARD, row.clock_mhz, *activity)


def test_the_power_cap_is_in_force() -> None:
    """At the top clock no row draws more than the cap, and capped steps take longer than the law says."""
    rows = [row for row in virtual_profile(CARD, seed=1, noise=0.0, clocks=(2520,)) if row.kind == "prefill"]
    assert max(row.power_w for row in rows) <= CARD.power_cap_w
    assert any(row.step_time_s > truth(row) for row in rows)


def test_kinds_and_limits() -> None:
    """All kinds of step are there, none beyond the batch, the token budget or the KV cache."""
    shape = CARD.engine_shape(max_num_seqs=64, max_num_batched_tokens=1100, num_blocks=4000)
    rows = virtual_profile(CARD, seed=1, shape=shape)
    assert {row.kind for row in rows} == {"decode", "prefill", "mixed", "idle"}
    assert max(row.decode_batch for row in rows) == 64
    assert max(row.decode_batch + row.prefill_tokens for row in rows) <= 1100
    assert max(row.kv_tokens for row in rows) <= shape.kv_capacity_tokens
    assert len({row.clock_mhz for row in rows}) == 10
    assert all(math.isnan(row.step_time_s) is (row.kind == "idle") for row in rows)


def test_noise_is_of_the_asked_size() -> None:
    """The logarithms of measured over true step times scatter by the asked amount, around zero."""
    rows = [
        row
        for row in virtual_profile(CARD, seed=3, noise=0.05, clocks=(600, 900, 1200))
        if row.kind != "idle"
    ]
    logs = [math.log(row.step_time_s / truth(row)) for row in rows]
    assert stdev(logs) == pytest.approx(0.05, rel=0.25)
    assert abs(mean(logs)) < 0.02


def test_seeds() -> None:
    """The same seed gives the same profile, another seed another one."""
    first, again, other = (virtual_profile(CARD, seed=seed, clocks=(900,)) for seed in (1, 1, 2))
    assert repr(first) == repr(again)
    assert repr(first) != repr(other)


def test_power_is_of_the_whole_engine() -> None:
    """Idle power of two GPUs is twice that of one."""
    card = load("a100", 2)
    idle = next(row for row in virtual_profile(card, seed=1, noise=0.0) if row.kind == "idle")
    assert idle.tp == 2
    assert idle.power_w == 2 * gpu.power_w(card, idle.clock_mhz, 0.0, 0.0)


def test_written_profiles_are_read_back(tmp_path: Path) -> None:
    """The CSV is in the columns that training reads."""
    rows = virtual_profile(CARD, seed=1, clocks=(900, 2520))
    path = tmp_path / "profile.csv"
    write_profile(rows, path)
    back = parse_csv(path.read_text(encoding="utf-8"))
    assert len(back) == len(rows)
    assert [row.kind for row in back] == [row.kind for row in rows]
    assert [row.power_w for row in back] == pytest.approx([row.power_w for row in rows], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -0.1}, "noise = -0.1"),
        ({"noise": math.nan}, "noise = nan"),
        ({"clocks": (1000,)}, r"clocks = \[1000\]: supported clocks from 210 to 2520 MHz"),
        ({"clocks": ()}, "clocks = none"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, float | tuple[int, ...]], message: str) -> None:
    """Noise outside its range and unsupported clocks are refused by name and value."""
    with pytest.raises(ValueError, match=message):
        virtual_profile(CARD, 1, **arguments)  # type: ignore[arg-type]


def test_spread_keeps_the_ends() -> None:
    """A selection of clocks holds the lowest and the highest."""
    assert spread((1, 2, 3, 4, 5), 3) == (1, 3, 5)
    assert spread((1, 2), 5) == (1, 2)
