"""The page beside the demo: its part of the configuration, its token, and requests that go on."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from kvwatt_sim.demo.daemon_process import DaemonProcess
from kvwatt_sim.demo.page import DemoPage, keep_up
from kvwatt_sim.demo.settings import DemoError, PageOptions
from kvwatt_sim.traces import TraceRequest
from kvwattd.api.tokens import Scope, TokenFile
from kvwattd.config import parse_config

INSTANCE = {"name": "demo", "url": "http://127.0.0.1:1", "gpus": ["0"]}


def told(page: DemoPage) -> str:
    console = Console(record=True, width=200)
    page.tell(console, "http://127.0.0.1:9")
    return console.export_text()


def test_the_token_is_told_to_who_stays_and_opens_the_controls(tmp_path: Path) -> None:
    """With --keep; whoever only measures is told the address alone."""
    text = told(DemoPage(PageOptions(8484, keep=True), tmp_path))
    file = TokenFile(tmp_path / "tokens.toml")
    file.load()
    entry = file.identify(text.rpartition(" ")[2].strip())
    assert entry is not None and entry.scope is Scope.CONTROL
    (tmp_path / "other").mkdir()
    text = told(DemoPage(PageOptions(), tmp_path / "other"))
    assert text.strip() == "live page: http://127.0.0.1:9/"


def test_its_section_is_one_that_the_daemon_takes(tmp_path: Path) -> None:
    """Port and token file as told."""
    page = DemoPage(PageOptions(8484), tmp_path)
    slo = {"tbt": {"limit_s": 0.1}}
    config = parse_config({**tomllib.loads(page.api), "slo": slo, "instance": [INSTANCE]})
    assert (config.api.port, config.api.token_file) == (8484, tmp_path / "tokens.toml")


def test_a_port_out_of_range_is_told() -> None:
    """With its value and what is accepted."""
    with pytest.raises(DemoError, match="--port 70000: 0"):
        PageOptions(70_000)


class Mortal:
    """A daemon that ends at its second look."""

    looks = 0

    def check(self) -> None:
        self.looks += 1
        if self.looks > 1:
            raise DemoError("the daemon ended")


async def test_requests_go_on_until_the_daemon_ends() -> None:
    """One draw after another, each another one; the daemon's end ends it and says so."""
    drawn: list[int] = []

    def draw(number: int) -> tuple[TraceRequest, ...]:
        drawn.append(number)
        return ()

    with pytest.raises(DemoError, match="daemon ended"):
        await keep_up("http://127.0.0.1:9", draw, 0.01, cast(DaemonProcess, Mortal()))
    assert drawn == [1, 2]
