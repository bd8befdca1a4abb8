"""`kvwatt train` and `kvwatt predict` over files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from model_world import synthetic_rows
from typer.testing import CliRunner

from kvwatt import artifact
from kvwatt.profiles import COLUMNS, format_row
from kvwattd.commands.predict import predict
from kvwattd.commands.train import train

app = typer.Typer()
app.command()(train)
app.command()(predict)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.csv"
    with path.open("w", newline="") as file:
        file.write("# hardware: Made-up GPU\n# vllm_version: 0.32.0\n# model_name: m\n")
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(format_row(row) for row in synthetic_rows())
    return path


@pytest.fixture(scope="module")
def trained(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("artifact") / "model"
    result = CliRunner().invoke(app, ["train", "--profile", str(profile), "-o", str(output), "--folds", "3"])
    assert result.exit_code == 0, result.output
    assert "clock left out" in result.output
    return output


def test_training_writes_a_model_that_says_where_it_comes_from(trained: Path) -> None:
    """Hardware, vLLM version and errors are in the manifest."""
    manifest = artifact.load_manifest(trained)
    assert (manifest.hardware, manifest.vllm_version, manifest.model_name) == ("Made-up GPU", "0.32.0", "m")
    assert manifest.errors["fold_decode_mape"] < 0.03
    assert manifest.created


def test_json_output_is_machine_readable(profile: Path, tmp_path: Path) -> None:
    """--json prints one object with the errors and the bound."""
    arguments = ["train", "--profile", str(profile), "-o", str(tmp_path / "m"), "--folds", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    document = json.loads(result.stdout)
    assert document["upper_factor"] >= 1
    assert "fold_ips_r2" in document["errors"]


def test_prediction_gives_the_points_back_with_three_columns(trained: Path, tmp_path: Path) -> None:
    """Order and foreign columns are kept; the bound is above the prediction."""
    points = tmp_path / "points.csv"
    points.write_text("name,freq_mhz,batch,context_tokens\na,1000,16,512\nb,2000,16,512\n")
    result = CliRunner().invoke(app, ["predict", "--model", str(trained), "--points", str(points)])
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["name"] for row in rows] == ["a", "b"]
    assert float(rows[0]["step_time_s"]) > float(rows[1]["step_time_s"])
    assert all(float(row["step_time_upper_s"]) >= float(row["step_time_s"]) for row in rows)
    assert all(60 < float(row["power_w"]) < 400 for row in rows)


def test_wrong_input_exits_with_two_and_a_reason(trained: Path, tmp_path: Path) -> None:
    """Unknown columns, a missing model, a table without a GPU name."""
    points = tmp_path / "points.csv"
    points.write_text("a,b\n1,2\n")
    for arguments, message in (
        (["predict", "--model", str(trained), "--points", str(points)], "unknown columns"),
        (["predict", "--model", str(tmp_path), "--points", str(points)], "manifest.json"),
        (["train", "--profile", str(points), "-o", str(tmp_path / "m")], "unknown columns"),
        (["train", "--profile", str(tmp_path / "none.csv"), "-o", str(tmp_path / "m")], "none.csv"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert message in result.output
    nameless = tmp_path / "nameless.csv"
    nameless.write_text("freq_mhz,batch,context_tokens,step_seconds\n900,1,256,0.02\n")
    result = CliRunner().invoke(app, ["train", "--profile", str(nameless), "-o", str(tmp_path / "m")])
    assert result.exit_code == 2
    assert "--hardware" in result.output
