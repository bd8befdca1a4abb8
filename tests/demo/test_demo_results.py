from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from kvwatt_sim.demo.results import DemoResult
from kvwatt_sim.demo.settings import SLO
from kvwatt_sim.demo.table import print_result
from kvwatt_sim.demo.view import Frame, LineView, LiveView, PlantView


def test_the_document_has_both_plants_and_their_comparison(result: DemoResult) -> None:
    """The JSON has both plants under the same keys, the saving, and attainment beside it."""
    document = json.loads(json.dumps(result.document()))
    assert set(document["baseline"]) == set(document["kvwatt"])
    assert document["energy_saved_ratio"] == pytest.approx(0.4)
    assert document["slo_attainment"] == {"ttft": 0.975, "tbt": 0.975, "e2e": 0.975}
    assert {"energy_j", "tokens", "tokens_per_j", "ttft_p50_s", "e2e_p99_s", "clock_changes"} <= set(
        document["kvwatt"]
    )
    assert document["slo"]["tbt"] == {"limit_s": 0.2, "quantile": 0.99}


def test_tokens_left_undone_do_not_count_as_saved(result: DemoResult) -> None:
    """The saving per token is smaller than the saving when fewer tokens were served."""
    assert result.per_token_saved_ratio == pytest.approx(0.2)


def test_the_table_shows_baseline_interval_and_attainment(result: DemoResult) -> None:
    """The printed saving never stands without its baseline, its interval and the promises kept."""
    out = io.StringIO()
    print_result(Console(file=out, width=200), result)
    text = out.getvalue()
    assert "Energy saved against driver default over 30 s: 40.0 % (20.0 % per token" in text
    assert "promises kept: TTFT 97.5 %, TBT 97.5 %, E2E 97.5 %" in text
    assert "warning: the server kvwatt lost 1.0 s" in text
    for label in ("energy", "tokens per joule", "clock changes", "TTFT p99", "TBT p50", "E2E within 60 s"):
        assert label in text


def _frame(elapsed_s: float) -> Frame:
    default = PlantView("driver default", 2520, "driver default", 210.0, 900.0, 5, 1, 0.3, 0.03, 0.05, 4, 800)
    silent = PlantView(
        "under kvwatt", 1200, "locked to 1200", 120.0, 500.0, None, None, None, None, None, 0, 0
    )
    return Frame(elapsed_s, 9.0, 40.0, 6, 50, (default, silent), "active", "1200 MHz: TBT 0.1 s of 0.2 s")


def test_plain_output_is_a_line_every_few_seconds() -> None:
    """Where there is no terminal, frames become lines at most every five seconds."""
    out = io.StringIO()
    with LineView(Console(file=out, width=200)) as view:
        for tenth in range(0, 120, 5):
            view.show(_frame(tenth / 10))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "6/50 sent (warm-up)" in lines[0]
    assert "driver default 2520 MHz 210 W batch 5 TBT 30 ms" in lines[0]
    assert "(warm-up)" not in lines[2]


def test_the_live_view_shows_both_plants_and_the_reason() -> None:
    """On a terminal clock, power, batch, KV cache and TBT of both are shown, and why kvwatt decided so."""
    out = io.StringIO()
    with LiveView(Console(file=out, width=120, force_terminal=True, color_system=None), SLO) as view:
        view.show(_frame(12.0))
    text = out.getvalue()
    for part in ("2520 MHz", "locked to 1200", "5 running, 1 waiting", "30 ms of 200 ms", "kvwatt (active)"):
        assert part in text
