"""What was set over REST outlives a restart, and what cannot be kept stops nothing."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from kvwattd.api.ports import Rejected
from kvwattd.api.schemas import ModeSetView, ModeView, SloTargetView, SloView
from kvwattd.config import Config, Mode, parse_config
from kvwattd.control import Control
from kvwattd.loop import Daemon
from kvwattd.settings import UNREADABLE, Settings, SettingsFile

SLO = SloView(ttft=SloTargetView(limit_s=1.5))
NOW_S = 1_700_000_000.0


def config(mode: str = "shadow", name: str = "chat") -> Config:
    data: dict[str, Any] = {
        "daemon": {"mode": mode},
        "slo": {"tbt": {"limit_s": 0.1}},
        "instance": [{"name": name, "url": "http://127.0.0.1:9", "gpus": ["0"]}],
    }
    return parse_config(data)


def started(path: Path | None, configured: Config) -> tuple[Daemon, Control]:
    """A daemon as it is after a start, and what REST calls."""
    settings = SettingsFile(path)
    settings.load(configured, NOW_S)
    daemon = Daemon(configured, settings=settings)
    return daemon, Control(daemon)


def full(descriptor: int) -> None:
    """A disk that has no room left."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_mode_and_promises_outlive_a_restart_and_say_who_set_them(tmp_path: Path) -> None:
    """After a restart they are in force over the configuration; the status tells by whom and when."""
    path = tmp_path / "settings.json"
    _, control = started(path, config())
    await control.set_mode(ModeView(mode=Mode.ACTIVE), "operator")
    await control.set_slo("chat", SLO, "night shift")
    daemon, again = started(path, config())
    assert daemon.mode is Mode.ACTIVE
    assert again.slos()["chat"] == SLO
    shown = again.status().settings
    assert shown.mode is not None and (shown.mode.by, shown.mode.mode) == ("operator", Mode.ACTIVE)
    assert shown.slos["chat"].by == "night shift" and shown.slos["chat"].unix_s > NOW_S
    assert path.stat().st_mode & 0o077 == 0


async def test_deleting_goes_back_to_the_configuration_for_good(tmp_path: Path) -> None:
    """At once, and after a restart; deleting what was never set is no error."""
    path = tmp_path / "settings.json"
    daemon, control = started(path, config())
    await control.set_mode(ModeView(mode=Mode.ACTIVE), "operator")
    await control.set_slo("chat", SLO, "operator")
    for _ in range(2):
        assert (await control.clear_mode()).mode is Mode.SHADOW
        assert (await control.clear_slo("chat")).ttft is None
    assert daemon.mode is Mode.SHADOW and daemon.runs["chat"].slo.tbt is not None
    daemon, control = started(path, config())
    assert daemon.mode is Mode.SHADOW and control.settings() == control.settings().model_copy(
        update={"mode": None, "slos": {}}
    )


async def test_an_override_does_not_outlive_a_restart(tmp_path: Path) -> None:
    """A clock by hand is for a limited time and never written down."""
    path = tmp_path / "settings.json"
    _, control = started(path, config("active"))
    await control.set_mode(ModeView(mode=Mode.ACTIVE), "operator")
    assert set(Settings.model_validate_json(path.read_bytes()).model_dump()) == {"version", "mode", "slos"}
    assert control.override("chat") is None


async def test_promises_of_a_vanished_instance_are_dropped(tmp_path: Path) -> None:
    """The configuration decides which instances there are."""
    path = tmp_path / "settings.json"
    _, control = started(path, config())
    await control.set_slo("chat", SLO, "operator")
    daemon, _ = started(path, config(name="other"))
    assert daemon.settings.current.slos == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"version": 2}', b'{"mode": {"mode": "on"}}', b'{"x": 1}']
)
@pytest.mark.parametrize(("mode", "expected"), [("active", "shadow"), ("shadow", "shadow"), ("off", "off")])
def test_a_damaged_file_never_leads_to_control(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, mode: str, expected: str
) -> None:
    """It may have said 'off': no GPU is written to until somebody says so; the alarm names the file."""
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    daemon, control = started(path, config(mode))
    assert daemon.mode == expected
    shown = control.settings()
    assert shown.errors_total == 1 and shown.last_error and str(path) in shown.last_error
    assert "/api/v1/mode" in caplog.text
    assert shown.mode is None or shown.mode.by == UNREADABLE


async def test_setting_the_mode_anew_ends_the_alarm(tmp_path: Path) -> None:
    """After a damaged file any change writes a sound one."""
    path = tmp_path / "settings.json"
    path.write_text("{")
    _, control = started(path, config("active"))
    await control.clear_mode()
    assert control.settings().last_error is None
    daemon, _ = started(path, config("active"))
    assert daemon.mode is Mode.ACTIVE


async def test_a_disk_that_cannot_be_written_stops_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is in force, the alarm says that a restart forgets it, and the old file is whole."""
    path = tmp_path / "settings.json"
    daemon, control = started(path, config())
    await control.set_mode(ModeView(mode=Mode.ACTIVE), "operator")
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    await control.set_mode(ModeView(mode=Mode.OFF), "operator")
    assert daemon.mode is Mode.OFF and path.read_bytes() == before
    assert control.settings().errors_total == 1
    assert "restart forgets" in (control.settings().last_error or "")


async def test_a_refused_promise_is_not_kept(tmp_path: Path) -> None:
    """What is refused leaves no trace in the file."""
    path = tmp_path / "settings.json"
    _, control = started(path, config())
    with pytest.raises(Rejected):
        await control.set_slo("chat", SloView(), "operator")
    assert not path.exists()


async def test_simultaneous_changes_end_with_the_newest_on_disk(tmp_path: Path) -> None:
    """Writes follow each other; what is on disk is what is in force."""
    path = tmp_path / "settings.json"
    settings = SettingsFile(path)
    changes = [
        Settings(mode=ModeSetView(by=f"caller{number}", unix_s=number, mode=Mode.OFF)) for number in range(50)
    ]
    await asyncio.gather(*(settings.keep(change) for change in changes))
    assert Settings.model_validate_json(path.read_bytes()) == settings.current == changes[-1]
