"""`kvwatt train` takes tables or telemetry, and says what it lacks; no Dask needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kvwattd.commands.train import train

app = typer.Typer()
app.command()(train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to train on"),
        (["--prefill", "p.csv"], "nothing to train on"),
        (["--telemetry", "x/*.parquet"], "go together"),
        (["--profile", "p.csv", "--scheduler", "tcp://h:8786"], "go together"),
        (["--profile", "p.csv", "--telemetry", "x", "--scheduler", "tcp://h:8786"], "not both"),
        (["--telemetry", "x", "--scheduler", "tcp://h:8786", "--folds", "3"], "--folds is for --profile"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(
    tmp_path: Path, options: list[str], message: str
) -> None:
    """Exit code 2, and nothing is written."""
    result = CliRunner().invoke(app, [*options, "-o", str(tmp_path / "m")], terminal_width=200)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(find_spec("distributed") is not None, reason="Dask is installed here")
def test_without_dask_the_command_says_what_to_install(tmp_path: Path) -> None:
    """The extra is named."""
    options = ["--telemetry", "x/*.parquet", "--scheduler", "tcp://127.0.0.1:1", "-o", str(tmp_path / "m")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert "pip install 'kvwatt[fleet]'" in result.output
