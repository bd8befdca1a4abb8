"""`kvwatt replay` from the command line: one comparison, resumed, in processes, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from replay_files import mooncake
from typer.testing import CliRunner, Result

from kvwatt_sim.cli.replay import replay

app = typer.Typer()
app.command()(replay)
LISTS = ("--load", "0.4,0.8", "--policy", "max,fixed-1200", "--seeds", "1-2", "--workers", "1")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mooncake(tmp_path_factory.mktemp("traces") / "mooncake.jsonl")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text())["rows"]
    assert isinstance(rows, list)
    return rows


def test_one_comparison_is_one_line(trace: Path, tmp_path: Path) -> None:
    """Every load, policy and seed is replayed; the row tells energy, tokens, attainment and quantiles."""
    out = tmp_path / "out.json"
    done = run("--plant", "l20", "--trace", trace, "--slo", "paper", *LISTS, "--json", out)
    assert done.exit_code == 0, done.output
    rows = rows_of(out)
    settings = {(row["load"], row["policy"], row["seed"]) for row in rows}
    assert len(rows) == len(settings) == 8
    for row in rows:
        assert row["energy_j"] > 0
        assert row["tokens"] > 0
        assert set(row["attainment"]) == set(row["limits_s"]) == {"ttft", "tbt", "e2e"}
        for name in ("ttft", "tbt", "e2e", "itl"):
            levels = row["quantiles_s"][name]
            assert 0 < levels["0.5"] <= levels["0.9"] <= levels["0.99"]
    by_policy = {(row["policy"], row["load"], row["seed"]): row["energy_j"] for row in rows}
    assert by_policy["fixed-1200", 0.4, 1] < by_policy["max", 0.4, 1]
    assert "load 0.8" in done.output


def test_kvwatt_itself_is_among_the_policies(trace: Path, tmp_path: Path) -> None:
    """With its trained model and its own decisions it serves the same tokens for less."""
    out = tmp_path / "out.json"
    done = run("--trace", trace, "--load", "0.5", "--policy", "max,kvwatt", "--json", out, "--workers", "1")
    assert done.exit_code == 0, done.output
    most, ours = rows_of(out)
    assert ours["tokens"] == most["tokens"]
    assert ours["energy_j"] < 0.8 * most["energy_j"]
    assert ours["clock_changes"] > 5


def test_what_is_done_is_not_done_again(trace: Path, tmp_path: Path) -> None:
    """A second run takes its rows from the side file; a broken line there loses only itself."""
    out = tmp_path / "out.json"
    assert run("--trace", trace, *LISTS, "--json", out).exit_code == 0
    first, side = rows_of(out), tmp_path / "out.json.jsonl"
    lines = side.read_text().splitlines()
    marked = json.loads(lines[0])
    marked["row"]["marked"] = True
    side.write_text("\n".join([json.dumps(marked), "{broken", *lines[2:]]) + "\n" + '{"key": "cut off", "ro')
    again = run("--trace", trace, *LISTS, "--json", out)
    assert again.exit_code == 0
    assert "2 broken lines" in " ".join(again.output.split())
    rows = rows_of(out)
    assert sum("marked" in row for row in rows) == 1
    assert [{k: v for k, v in row.items() if k != "marked"} for row in rows] == first
    assert len(side.read_text().splitlines()) == 10  # 7 good, 2 broken, 1 done again


def test_a_killed_sweep_goes_on(trace: Path, tmp_path: Path) -> None:
    """Killed at any moment, the rows that were written stand, and the rest follows."""
    out, side = tmp_path / "out.json", tmp_path / "out.json.jsonl"
    options = ["--trace", str(trace), "--load", "0.5", "--policy", "best-fixed,max", "--seeds", "1-12"]
    command = [sys.executable, "-m", "kvwattd", "replay", *options, "--json", str(out), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 120.0
        while time.monotonic() < deadline and not (side.exists() and side.read_text().count("\n") >= 3):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    before = side.read_text().splitlines()
    assert 3 <= len(before) < 24
    assert not out.exists()
    assert run(*options, "--json", out, "--workers", "1").exit_code == 0
    after = side.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(rows_of(out)) == 24
    whole = [json.loads(line)["key"] for line in after if line.endswith("}}")]
    assert len(whole) == len(set(whole)) == 24


def test_processes_give_the_same_rows(trace: Path, tmp_path: Path) -> None:
    """Two workers or none: the same numbers in the same order."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert run("--trace", trace, *LISTS, "--json", one).exit_code == 0
    assert run("--trace", trace, *LISTS[:-1], "2", "--json", two).exit_code == 0
    assert rows_of(one) == rows_of(two)


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--plant", "l21"), 2, "plant = 'l21': one of a100, h200, l20 is accepted"),
        (("--load", "x"), 2, "--load 'x': a list of numbers"),
        (("--load", "7"), 2, "load = 7.0: a share of capacity"),
        (("--slo", "lax"), 2, "slo = 'lax': one of paper, strict"),
        (("--policy", "best"), 2, "policy = 'best': one of kvwatt"),
        (("--policy", ","), 2, "--policy ',': at least one is needed"),
        (("--seeds", "4-1"), 2, "--seeds '4-1'"),
        (("--seeds", "one"), 2, "--seeds 'one'"),
        (("--trace", "nothing.csv"), 1, "nothing.csv: cannot be read"),
        (("--json", "no/such/folder/out.json"), 1, "No such file"),
        (("--scheduler", "tcp://127.0.0.1:1"), 1, "kvwatt replay: "),
    ],
)
def test_what_cannot_be_done_is_told(args: tuple[str, ...], code: int, told: str) -> None:
    """One line with key, value and what is accepted; exit code 2 where the command line is to blame."""
    done = run("--policy", "max", "--workers", "1", *args)
    assert done.exit_code == code, done.output
    assert told in " ".join(done.output.split())
    assert "Traceback" not in done.output
