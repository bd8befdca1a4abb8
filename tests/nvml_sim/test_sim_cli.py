"""`kvwatt sim gpu`: the tool that makes, shows, sets and breaks simulated GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvwatt_sim.cli.sim import app
from kvwatt_sim.nvml.control import SimGpus


class Tool:
    """Runs the commands on one state file."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, command: str, *args: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, ["gpu", command, "--state", str(self.state), *args])
        assert done.exit_code == status, done.output
        return done.output

    def shown(self, gpu: int = 0) -> dict[str, Any]:
        rows: list[dict[str, Any]] = json.loads(self("show", "--json"))
        return rows[gpu]


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path / "gpus")


def test_create_prints_the_environment(tool: Tool) -> None:
    """After create, other programs need only the two printed variables."""
    output = tool("create", "--card", "l20", "--count", "2")
    assert f"export KVWATT_SIM_STATE={tool.state}" in output
    assert "export LD_LIBRARY_PATH=" in output
    assert tool.shown(1)["index"] == 1
    assert "GPU 1" in tool("show")


def test_set_changes_what_is_given(tool: Tool) -> None:
    """Activity, lock, cap, temperature and permission are set; what is not given stays."""
    tool("create")
    with SimGpus.open(tool.state) as gpus:
        clocks = gpus.spec(0).supported_mhz
    low, high = clocks[0], clocks[len(clocks) // 2]
    tool("set", "--activity", "0.2,0.3", "--lock", f"{low},{high}", "--temperature-c", "55")
    tool("set", "--permission", "deny")
    row = tool.shown()
    assert (row["activity"], row["temperature_c"], row["permission"]) == ([0.2, 0.3], 55.0, "deny")
    tool("set", "--lock", "none", "--temperature-c", "none", "--cap-w", str(row["cap_w"]), "--reload-driver")
    assert tool.shown()["permission"] == "deny"


def test_inject_and_clear(tool: Tool) -> None:
    """Faults are counted per GPU and taken away by clear."""
    tool("create", "--count", "2")
    tool("inject", "--gpu", "1", "--error", "GPU_IS_LOST")
    tool("inject", "--gpu", "1", "--call", "nvmlDeviceSet*", "--obedience", "ignore", "--count", "3")
    assert (tool.shown(0)["faults"], tool.shown(1)["faults"]) == (0, 2)
    tool("clear")
    assert tool.shown(1)["faults"] == 0
    assert tool("log") == ""


def test_log_lists_setters(tool: Tool, nvml: Callable[[str], Any]) -> None:
    """Every setter called through NVML is listed, as text and as JSON lines."""
    tool("create")
    nvml("result = answer(n.nvmlDeviceSetGpuLockedClocks, h, 1, 2)")
    assert "nvmlDeviceSetGpuLockedClocks(1,2)  INVALID_ARGUMENT" in tool("log")
    assert json.loads(tool("log", "--json"))["args"] == "1,2"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("inject", "--error", "GPU_ON_FIRE"), "GPU_ON_FIRE"),
        (("set", "--permission", "maybe"), "permission = 'maybe'"),
        (("set", "--cap-w", "1"), "out of range"),
        (("set", "--gpu", "7", "--cap-w", "1"), "simulated GPU 7"),
        (("set", "--temperature-c", "warm"), "warm"),
    ],
)
def test_mistakes_are_named(tool: Tool, args: tuple[str, ...], message: str) -> None:
    """A wrong value ends with status 1 and a message that names it."""
    tool("create")
    assert message in tool(*args, status=1)


def test_a_missing_state_file_is_named(tool: Tool) -> None:
    """Commands on a file that is not there say which."""
    assert str(tool.state) in tool("show", status=1)
