"""`kvwatt replay --record`: what a recorded time would have cost otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from replay_files import recording
from typer.testing import CliRunner

from kvwatt_sim.cli.replay import replay
from kvwatt_sim.replay.what_if import ChangeError, parse

app = typer.Typer()
app.command()(replay)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording(tmp_path_factory.mktemp("recorded") / "days")


def asked(record: Path, tmp_path: Path, *changes: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Rows by what they are, and what was printed."""
    out = tmp_path / "out.json"
    options = [part for change in changes for part in ("--what-if", change)]
    done = CliRunner().invoke(app, ["--record", str(record), "--json", str(out), *options])
    assert done.exit_code == 0, done.output
    return {row["what"]: row for row in json.loads(out.read_text())["rows"]}, done.output


def test_a_recording_served_again_as_it_was_costs_what_was_measured(record: Path, tmp_path: Path) -> None:
    """Where the plant is the recorded one, the replay at driver default gives its energy and latencies."""
    rows, printed = asked(record, tmp_path)
    measured, again, ours = (rows[name] for name in ("recorded", "driver default", "kvwatt"))
    # Readings come every ten seconds: what lies before the first and after the last was not measured.
    assert 0.85 * again["energy_j"] < measured["energy_j"] <= again["energy_j"]
    assert again["tokens"] == measured["tokens"] == ours["tokens"]
    for name in ("ttft", "tbt", "e2e"):
        assert again["p99_s"][name] == pytest.approx(measured["p99_s"][name], rel=0.01)
    assert measured["limits_s"] == {"ttft": 3.0, "tbt": 0.2, "e2e": 60.0}
    assert ours["saved"] > 0.2
    assert "driver default" in printed


def test_changes_change_what_they_say(record: Path, tmp_path: Path) -> None:
    """A tighter promise costs more, a slow clock less, more instances idle more."""
    rows, _ = asked(record, tmp_path, "tbt=0.08", "instances=3", "clock=1200", "instances=3,clock=2520")
    assert rows["tbt=0.08"]["energy_j"] > rows["kvwatt"]["energy_j"]
    assert rows["tbt=0.08"]["limits_s"]["tbt"] == 0.08
    assert rows["clock=1200"]["clock_changes"] == 0
    assert 0 < rows["clock=1200"]["saved"] < 1
    assert rows["instances=3,clock=2520"]["saved"] < 0
    assert len({row["tokens"] for row in rows.values()}) == 1


def test_the_report_needs_nothing_else(record: Path, tmp_path: Path) -> None:
    """One HTML file with every row and plots, plotly's script inside, nothing fetched."""
    pytest.importorskip("plotly", reason="plotly is not installed: pip install 'kvwatt[report]'")
    page = tmp_path / "report.html"
    args = ["--record", str(record), "--what-if", "clock=1200", "--html", str(page)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert all(f"<td>{name}</td>" in text for name in ("recorded", "driver default", "kvwatt", "clock=1200"))
    assert text.count('class="plotly-graph-div"') == 5
    assert len(text) > 1_000_000
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("tbt", "tbt = '': a number of seconds above 0"),
        ("tbt=-1", "tbt = '-1'"),
        ("tbt=nan", "tbt = 'nan'"),
        ("instances=1.5", "instances = '1.5': a whole number from 1"),
        ("instances=inf", "instances = 'inf'"),
        ("price=3", "'price=3': ttft=, tbt=, e2e=, itl=, instances=, clock= are accepted"),
        ("", "are accepted"),
    ],
)
def test_changes_that_are_none_are_told(change: str, told: str) -> None:
    """With what is accepted."""
    with pytest.raises(ChangeError) as caught:
        parse(change)
    assert told in str(caught.value)


def test_what_cannot_be_replayed_is_told(record: Path, tmp_path: Path) -> None:
    """A clock the plant has not, a folder without recordings, a recording without promises."""
    empty = tmp_path / "empty"
    empty.mkdir()
    file = next(record.iterdir())
    bare = tmp_path / file.name
    bare.write_text(re.sub(r'"promised_s":\{[^}]*\}', '"promised_s":{}', file.read_text()))
    cases = [
        (["--record", str(record), "--what-if", "clock=7"], 2, "clock = 7: a clock from 210 to 2520 MHz"),
        (["--record", str(empty)], 1, "no recording; expected files like"),
        (["--record", str(bare)], 2, "names no promises: give --slo"),
        (["--record", str(bare), "--slo", "ttft=soon"], 2, "ttft = 'soon'"),
    ]
    for args, code, told in cases:
        done = CliRunner().invoke(app, args)
        assert (done.exit_code, told in " ".join(done.output.split())) == (code, True), done.output
