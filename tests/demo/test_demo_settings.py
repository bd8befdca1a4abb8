from __future__ import annotations

from pathlib import Path

import pytest

from kvwatt_sim.demo.run import draw
from kvwatt_sim.demo.settings import CAPACITY_PER_S, DemoError, DemoOptions, schedule

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{minute:02d}:{second:02d}.5000000,{100 + second},{10 + second}\n"
    for minute in range(10)
    for second in range(60)
)


@pytest.mark.parametrize("left_s", [11.0, 20.0, 55.0, 600.0])
def test_the_schedule_fits_the_time_left(left_s: float) -> None:
    """Warm-up, arrivals, drain and stopping never exceed what is left, and each gets a share."""
    plan = schedule(left_s)
    assert min(plan.warmup_s, plan.arrivals_s, plan.drain_s) > 0.0
    assert plan.bound_s < left_s


def test_a_setup_that_ate_the_time_is_told() -> None:
    """When setup leaves too little the message says how much is needed and what to do."""
    with pytest.raises(DemoError, match="setup left 2 s for serving, 8 s are needed"):
        schedule(5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 5.0}, "--seconds 5: 20 to 86400"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"load": 0.0}, "--load 0: a share"),
        ({"load": 9.0}, "--load 9: a share"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    """An option out of range is refused with its name, its value and what is accepted."""
    with pytest.raises(DemoError) as caught:
        DemoOptions(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_built_in_requests_have_the_load_and_start_at_once() -> None:
    """The built-in requests come at the asked share of capacity and the first arrives at 0 s."""
    requests = draw(DemoOptions(load=0.5, seed=4), 2000.0)
    assert requests[0].arrival_s == 0.0
    assert len(requests) / 2000.0 == pytest.approx(0.5 * CAPACITY_PER_S, rel=0.1)
    assert requests == draw(DemoOptions(load=0.5, seed=4), 2000.0)


def test_a_trace_file_is_thinned_to_the_load(tmp_path: Path) -> None:
    """Requests of a file keep their lengths and come at the asked share of capacity."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE, encoding="utf-8")
    requests = draw(DemoOptions(load=0.1, trace=path), 500.0)
    assert requests[0].arrival_s == 0.0
    assert len(requests) / 500.0 == pytest.approx(0.1 * CAPACITY_PER_S, rel=0.25)
    assert {r.prompt_tokens - r.output_tokens for r in requests} == {90}


def test_a_bad_trace_file_is_refused_with_its_line(tmp_path: Path) -> None:
    """A file that is no trace ends the demonstration with the place and the value."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE + "soon,1,1\n", encoding="utf-8")
    with pytest.raises(DemoError, match="line 602: TIMESTAMP 'soon'"):
        draw(DemoOptions(trace=path), 10.0)
