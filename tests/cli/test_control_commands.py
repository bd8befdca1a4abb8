"""Commands that change a running daemon, against its real REST interface, with and without the token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.server import ApiServer, Endpoints
from kvwattd.api.tokens import TokenFile, add_entry
from kvwattd.commands.durations import seconds
from kvwattd.commands.mode import mode
from kvwattd.commands.override import override
from kvwattd.commands.scale import scale
from kvwattd.commands.slo import slo
from kvwattd.commands.top import top
from kvwattd.config import Mode, parse_config
from kvwattd.control import Control
from kvwattd.loop import Daemon

CONTROL, READ = "c" * 64, "d" * 64


@dataclass
class Served:
    """A daemon that answers and does not tick, and how commands are run against it."""

    daemon: Daemon
    url: str

    async def __call__(self, command: Callable[..., Any], *args: str, token: str | None = CONTROL) -> Result:
        app = typer.Typer()
        app.command()(command)
        env = {"KVWATT_URL": self.url, "KVWATT_TOKEN": token, "COLUMNS": "200"}
        return await asyncio.to_thread(CliRunner().invoke, app, list(args), env=env)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    for name, scope, token in (("operator", "control", CONTROL), ("viewer", "read", READ)):
        add_entry(tmp_path / "tokens.toml", name, scope, token)
    tokens = TokenFile(tmp_path / "tokens.toml")
    tokens.load()
    daemon = Daemon(
        parse_config(
            {
                "daemon": {"state_dir": str(tmp_path / "state")},
                "slo": {"tbt": {"limit_s": 0.1}, "ttft": {"limit_s": 2.0}},
                "instance": [{"name": "chat", "url": "http://127.0.0.1:9", "gpus": ["0"]}],
            }
        )
    )
    access = Access(tokens)
    server = ApiServer(create_app(Control(daemon, access), access), Endpoints())
    await server.start()
    yield Served(daemon, server.url)
    await server.stop()


async def test_mode_is_shown_said_and_changed(served: Served) -> None:
    """A look changes nothing; a dry run says what would happen; a change is made and can be taken back."""
    shown = await served(mode)
    assert (shown.exit_code, shown.output.splitlines()[0]) == (0, "mode shadow (as configured)")
    tried = await served(mode, "active", "--dry-run")
    assert tried.exit_code == 0 and "sets GPU clocks through the guard" in tried.output
    assert served.daemon.mode is Mode.SHADOW
    done = await served(mode, "active", "--wait", "0")
    assert done.exit_code == 0 and "set over REST by operator" in done.output
    assert served.daemon.mode is Mode.ACTIVE
    back = await served(mode, "configured", "--wait", "0", "--json")
    assert json.loads(back.stdout)["mode"] == "shadow"
    assert served.daemon.mode is Mode.SHADOW


async def test_a_mode_that_does_not_take_effect_is_told(served: Served) -> None:
    """The mode is set, yet no clock is controlled: exit code 1, the regime's reason and the next step."""
    done = await served(mode, "active", "--wait", "0.3")
    assert done.exit_code == 1 and "chat: starting" in done.stderr and "next: " in done.stderr


@pytest.mark.parametrize("token", [None, READ, "e" * 64])
async def test_without_the_right_token_nothing_changes(served: Served, token: str | None) -> None:
    """Exit code 4, how to get a token, and never the token itself."""
    for command, args in ((mode, ["active"]), (slo, ["chat", "--tbt", "9"]), (override, ["chat", "--end"])):
        done = await served(command, *args, token=token)
        assert done.exit_code == 4 and "kvwatt token NAME --scope control" in done.stderr
        assert token is None or token not in done.output
    assert served.daemon.mode is Mode.SHADOW


async def test_a_token_may_stand_in_a_file(served: Served, tmp_path: Path) -> None:
    """One that is no token is refused with 2."""
    path = tmp_path / "mine"
    path.write_text(CONTROL + "\n")
    done = await served(mode, "off", "--wait", "0", "--token-file", str(path), token=None)
    assert done.exit_code == 0 and served.daemon.mode is Mode.OFF
    path.write_text("two words\n")
    done = await served(mode, "active", "--token-file", str(path), token=None)
    assert done.exit_code == 2 and "is no token" in done.stderr


async def test_promises_are_changed_one_by_one(served: Served) -> None:
    """What is not named stays; none takes a promise away; reset goes back to the file."""
    assert "chat: TTFT 2 s for 99 %, TBT 0.1 s for 99 %" in (await served(slo)).output
    done = await served(slo, "chat", "--ttft", "1.5", "--quantile", "0.999")
    assert "TTFT 1.5 s for 99.9 %, TBT 0.1 s for 99 %" in done.output
    assert "TBT" not in (await served(slo, "chat", "--tbt", "none")).output
    refused = await served(slo, "chat", "--ttft", "none")
    assert refused.exit_code == 1 and "nothing is promised" in refused.stderr
    assert "TTFT 2 s" in (await served(slo, "chat", "--reset")).output
    for args in (["chat", "--tbt", "soon"], ["--tbt", "1"], ["nobody", "--tbt", "1"]):
        assert (await served(slo, *args)).exit_code == 2


async def test_override_and_scale_are_refused_with_what_is_accepted(served: Served) -> None:
    """In shadow mode, without a pool, for an unknown instance, at no clock, for no time."""
    done = await served(override, "chat", "1200")
    assert done.exit_code == 1 and "mode active" in done.stderr
    assert (await served(override, "chat")).output.strip() == "chat: automatic"
    unknown = await served(override, "nobody", "1200")
    assert unknown.exit_code == 2 and "known: chat" in unknown.stderr
    for args in (["chat", "fast"], ["chat", "1200", "--for", "2h"], ["chat", "1200", "--for", "long"]):
        assert (await served(override, *args)).exit_code == 2
    assert "there is no pool" in (await served(scale)).output
    assert (await served(scale, "2")).exit_code == 1
    assert served.daemon.runs["chat"].override is None


async def test_override_is_held_and_ended(served: Served) -> None:
    served.daemon.set_mode(Mode.ACTIVE)
    held = await served(override, "chat", "default", "--for", "5m")
    assert held.exit_code == 0 and "chat: driver default for" in held.output and "undo: " in held.output
    assert served.daemon.runs["chat"].override is not None
    assert (await served(override, "chat", "--end")).output.strip() == "chat: automatic"


async def test_top_shows_one_frame_into_a_pipe_and_refuses_to_live_there(served: Served) -> None:
    done = await served(top, "--once")
    assert done.exit_code == 0 and "chat" in done.output and "starting" in done.output
    piped = await served(top)
    assert piped.exit_code == 2 and "kvwatt top --once" in piped.stderr


@pytest.mark.parametrize(("text", "value"), [("90", 90.0), ("1.5m", 90.0), ("1h", 3600.0), ("2 s", 2.0)])
def test_times_are_read(text: str, value: float) -> None:
    assert seconds(text, "--for", 3600.0) == value
