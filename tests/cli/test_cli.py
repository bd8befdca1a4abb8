"""The command line: quick help, exit codes, and commands that are imported only when called."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.cli import COMMANDS, ENTRY_POINTS


def kvwatt(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvwattd", *args],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_lists_every_command() -> None:
    """Help names all commands with a line each, and the exit codes."""
    done = kvwatt("--help")
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert f" {name} " in done.stdout
        assert command.help in done.stdout
    assert "Exit codes" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    """Help is quick because no command, and no library a command needs, is imported for it."""
    code = (
        "import sys; sys.argv = ['kvwatt', '--help']\n"
        "from kvwattd.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'lightgbm', 'scipy', 'pydantic', 'fastapi', 'httpx', 'uvicorn', 'pynvml'}\n"
        "print('LOADED', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert "LOADED []" in done.stdout


def test_completion_knows_commands_and_their_options() -> None:
    """What bash asks for: names of commands without importing any, options of the one it is at."""

    def completed(line: str) -> list[str]:
        words = str(len(line.split(" ")) - 1)
        return kvwatt(_KVWATT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=words).stdout.split()

    assert completed("kvwatt st") == ["status"]
    assert {"--dry-run", "--token-file"} <= set(completed("kvwatt mode --"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    """Every command is installed and explains itself."""
    done = kvwatt(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_version_is_that_of_the_distribution() -> None:
    """--version tells the installed version."""
    done = kvwatt("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"kvwatt {version('kvwatt')}")


def test_no_command_shows_help_and_unknown_is_refused() -> None:
    """Wrong usage ends with 2."""
    assert "Commands" in kvwatt().stdout
    unknown = kvwatt("dmeo")
    assert unknown.returncode == 2
    assert "dmeo" in unknown.stderr


def test_run_refuses_bad_configuration_with_2(tmp_path: Path) -> None:
    """A configuration that cannot be accepted ends with 2 and names the key, without a traceback."""
    path = tmp_path / "kvwatt.toml"
    path.write_text("[daemon]\ntik_s = 1\n")
    done = kvwatt("run", "--config", str(path))
    assert done.returncode == 2
    assert "did you mean 'tick_s'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_guard_gets_its_arguments_unchanged(tmp_path: Path) -> None:
    """`kvwatt guard` becomes the guard: its own options, its own errors and its exit code."""
    shown = kvwatt("guard", "--help")
    assert "--reset-recorded" in shown.stdout
    bounds = ("--min-mhz", "900", "--max-mhz=600")
    files = (f"--socket={tmp_path}/guard.sock", f"--state-file={tmp_path}/guard.json")
    refused = kvwatt("guard", "--gpu", demo_uuid(0), *bounds, *files)
    assert refused.returncode == 2
    assert "mhz" in refused.stderr


def test_command_whose_code_is_missing_is_told(tmp_path: Path) -> None:
    """An entry point that leads nowhere ends with 1 and says so; the others still work."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nnowhere = no_such_module:app\n")
    assert kvwatt("--help", PYTHONPATH=str(tmp_path)).returncode == 0
    done = kvwatt("nowhere", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "no_such_module" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("run", "--config", "{folder}/missing.toml"), 2),
        (("run", "--config", "{folder}/bad.toml"), 2),
        (("status", "--url", "http://127.0.0.1:9"), 3),
        (("mode", "active", "--url", "unix:{folder}/missing.sock"), 3),
        (("status", "--url", "nowhere"), 2),
        (("status", "--ca", "{folder}/missing"), 2),
        (("predict", "--model", "{folder}", "--points", "{folder}/missing.csv"), 2),
        (("train", "--profile", "{folder}/missing.csv", "-o", "{folder}/model"), 2),
        (("token", "not a name", "--file", "{folder}/tokens.toml"), 2),
    ],
)
def test_every_refusal_ends_with_the_next_step(tmp_path: Path, args: tuple[str, ...], code: int) -> None:
    """What is wrong in one paragraph, the next step in the last line, no traceback."""
    (tmp_path / "bad.toml").write_text("[deamon]\n")
    done = kvwatt(*(arg.replace("{folder}", str(tmp_path)) for arg in args))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code
    assert lines[0].startswith(f"kvwatt {args[0]}: ") and lines[-1].startswith("next: ")
    assert "Traceback" not in done.stderr
