"""`kvwatt report`: every saving with its baseline, interval and promises; three forms of the same figures."""

from __future__ import annotations

import json
import random
import re
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from ledger_rows import DAY_MS, MINUTE_MS, START_MS, held, row
from typer.testing import CliRunner

from kvwattd.cli import build_app
from kvwattd.ledger.entry import Entry, Level, merged
from kvwattd.ledger.store import Store
from kvwattd.money import Rates
from kvwattd.report.curves import days, points
from kvwattd.report.figures import AT_DEFAULT, BY_MODEL, FIXED, make
from kvwattd.report.range import moment_ms

RATES = Rates(price=0.3, intensity=400.0)
MINUTES = 1440


def a_day(instance: str = "a", first: int = 0, seed: int = 1) -> list[Entry]:
    """A controlled day of 12 kJ a minute but for 8 windows that took 18 kJ, give or take 2 %."""
    rng = random.Random(seed)
    rows = []
    for i in range(MINUTES):
        number = first + i
        energy = round(18e6 * rng.gauss(1.0, 0.02))
        if i % 180 == 60:
            rows.append(held(number, slot=i, energy_mj=energy, instance=instance))
        else:
            rows.append(row(number, instance=instance))
    return rows


def figures(rows: list[Entry]):  # noqa: ANN201
    return make(rows, START_MS, START_MS + 30 * DAY_MS, RATES)


def test_the_saving_of_a_day_is_measured_against_its_windows() -> None:
    """6 of 18 kJ a minute are saved: the interval holds it, promises and cost stand beside it."""
    found = figures(a_day()).total
    first = found.savings[0]
    assert first.baseline == AT_DEFAULT and first.windows == 8
    true_j = 6000.0 * (MINUTES - 8)
    assert first.low_j is not None and first.high_j is not None
    assert first.low_j < true_j < first.high_j
    assert first.saved_j == pytest.approx(true_j, rel=0.05)
    assert [saving.baseline for saving in found.savings] == [AT_DEFAULT, BY_MODEL, FIXED]
    assert found.disagrees is False
    assert found.attainment["ttft"].ratio == pytest.approx(59.5 / 60)
    assert found.slo_cost["ttft"].low < 0.0 < found.slo_cost["ttft"].high
    assert found.energy_j == pytest.approx(sum(r.energy_mj for r in a_day()) / 1e3)
    assert found.bill.money == pytest.approx(found.energy_j / 3.6e6 * 0.3)
    assert found.saved_bill is not None
    assert found.saved_bill.co2_g == pytest.approx(first.saved_j / 3.6e6 * 400.0)


def test_the_best_fixed_clock_keeps_the_promises() -> None:
    """900 MHz would cost less and break them; 1500 costs 14/17 of default."""
    found = figures(a_day()).total
    assert found.best_fixed_mhz == 1500
    fixed = found.savings[2]
    assert fixed.baseline_j == pytest.approx(found.savings[0].baseline_j * 14 / 17)


def test_a_model_that_is_wrong_is_told() -> None:
    """Its figure far outside the interval: they disagree."""
    wrong = [replace(r, default_mj=2 * r.default_mj) for r in a_day()]
    assert figures(wrong).total.disagrees is True


def test_merged_rows_prove_the_same() -> None:
    """After down-sampling the windows stay and sums are exact: the same saving, the same interval."""
    rows = a_day()
    windows = [r for r in rows if r.slot]
    coarse = windows + merged([r for r in rows if not r.slot], Level.DAY)
    assert figures(coarse).total.savings == figures(rows).total.savings


def test_several_instances_are_summed_and_their_errors_in_square() -> None:
    found = figures(a_day("a") + a_day("b", seed=2))
    assert [one.name for one in found.instances] == ["a", "b"]
    total, each = found.total.savings[0], [one.savings[0] for one in found.instances]
    assert total.saved_j == pytest.approx(sum(one.saved_j for one in each))
    halves = [(one.high_j or 0.0) - one.saved_j for one in each]
    assert (total.high_j or 0.0) - total.saved_j == pytest.approx((halves[0] ** 2 + halves[1] ** 2) ** 0.5)


def test_shadow_days_would_have_saved() -> None:
    """Nothing was saved: the words say so, and there is no interval."""
    rows = [
        replace(r, mode="shadow", arm="none", energy_mj=18_000_000, default_mj=18_000_000, slot=0)
        for r in (row(i) for i in range(100))
    ]
    found = figures([replace(r, arm=row().arm.NONE) for r in rows]).total
    assert len(found.savings) == 1
    saving = found.savings[0]
    assert saving.would and saving.low_j is None and saving.saved_j == pytest.approx(100 * 6000.0)
    assert found.controlled_h == 0.0


def test_days_and_points_of_the_page() -> None:
    """Two days, a bar each with its interval; points cover the range and mark the windows."""
    rows = a_day() + a_day(first=MINUTES, seed=3)
    report = make(rows, START_MS, START_MS + 2 * DAY_MS, RATES)
    assert [day.start_ms for day in days(rows)] == [START_MS, START_MS + DAY_MS]
    assert all(day.low_j < day.saved_j < day.high_j for day in days(rows))
    shown = points(rows, report)
    assert len(shown) == 192
    assert sum(p.held for p in shown) == 16
    quiet = next(p for p in shown if not p.held)
    assert quiet.power_w == pytest.approx(200.0) and quiet.clock_mhz == pytest.approx(1200.0)
    assert quiet.baseline_w == pytest.approx(300.0, rel=0.05)


@pytest.fixture(scope="module")
def ledger() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="kvwatt-report-"))
    store = Store(folder / "ledger.db")
    store.open()
    store.append(a_day() + a_day("b", seed=2))
    store.close()
    return folder / "ledger.db"


def run(*arguments: object) -> tuple[int, str]:
    told = CliRunner().invoke(build_app(), ["report", *map(str, arguments)], env={"COLUMNS": "200"})
    return told.exit_code, told.output


RANGE = ("--from", "2024-10-03T00:00+00:00", "--to", "2024-10-06T00:00+00:00")


def test_the_terminal_shows_baseline_interval_and_promises(ledger: Path) -> None:
    code, told = run("--db", ledger, *RANGE, "--price", "0.25")
    assert code == 0, told
    assert "saved against driver default, measured in windows" in told
    assert re.search(r"\(3[0-9.]+%\); [0-9.]+ kWh to [0-9.]+ kWh", told), told
    assert "TTFT 99.17%" in told and "EUR" in told and "Of 16 windows the seed in the ledger draws 0." in told
    assert "given up" in told


def test_json_is_the_same_in_numbers(ledger: Path) -> None:
    code, told = run("--db", ledger, *RANGE, "--json", "--instance", "b")
    document = json.loads(told)
    assert code == 0 and [one["name"] for one in document["instances"]] == ["b"]
    saving = document["total"]["savings"][0]
    assert saving["low_j"] < saving["saved_j"] < saving["high_j"]
    assert saving["ratio"] == pytest.approx(saving["saved_j"] / saving["baseline_j"])
    assert document["level"] == 0.95


def test_the_page_stands_alone(ledger: Path, tmp_path: Path) -> None:
    """Plots inside, nothing to fetch."""
    pytest.importorskip("plotly")
    page = tmp_path / "report.html"
    code, told = run("--db", ledger, *RANGE, "--html", page)
    assert code == 0, told
    text = page.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    assert text.count("Plotly.newPlot(") == 6
    for title in ("Power", "Clock", "Saved", "Promises kept", "Energy per generated token"):
        assert title in text
    assert "measured in windows drawn at random" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--db", "/nowhere/ledger.db"), 1, "there is no such file"),
        (("--from", "someday"), 2, "accepted is now"),
        (("--from", "1h", "--to", "2h"), 2, "is not before"),
        (("--price", "nan"), 2, "price_per_kwh"),
        (("--config", "/nowhere.toml"), 2, "/nowhere.toml"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_next_step(
    arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, told = run(*arguments)
    assert (found, said in " ".join(told.split())) == (code, True), told


def test_an_empty_range_and_a_wrong_cost_file_are_told(ledger: Path, tmp_path: Path) -> None:
    assert run("--db", ledger, "--from", "1h")[0] == 1
    (tmp_path / "cost.csv").write_text("time,price_per_kwh\n1,x\n")
    code, told = run("--db", ledger, *RANGE, "--cost-file", tmp_path / "cost.csv")
    assert code == 2 and "line 2" in told


def test_moments_as_they_are_typed() -> None:
    now = datetime(2026, 3, 1, 12, 30, tzinfo=timezone(timedelta(hours=2)))

    def at(*parts: int) -> int:
        return round(datetime(*parts, tzinfo=now.tzinfo).timestamp() * 1e3)

    assert moment_ms("now", now) == at(2026, 3, 1, 12, 30)
    assert moment_ms("today", now) == at(2026, 3, 1)
    assert moment_ms("yesterday", now) == at(2026, 2, 28)
    assert moment_ms("36h", now) == at(2026, 2, 28, 0, 30)
    assert moment_ms("2026-02-03", now) == at(2026, 2, 3)
    assert moment_ms("2026-02-03T04:05Z", now) == round(
        datetime(2026, 2, 3, 4, 5, tzinfo=UTC).timestamp() * 1e3
    )
    for bad in ("", "7", "32nd", "9" * 400 + "d", "0001-01-01T00:00+14:00x"):
        with pytest.raises(ValueError, match="accepted is"):
            moment_ms(bad, now)


assert MINUTE_MS * MINUTES == DAY_MS
