"""The daemon with a tap: it listens while it runs, goes on where it cannot, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tap_records import CONFIG, iteration, scheduler

from kvwattd.config import ConfigError, parse_config
from kvwattd.control import Control
from kvwattd.loop import Daemon
from kvwattd.vllm_plugin.recorder import Recorder


def daemon(folder: Path, socket: Path | None, **more: Any) -> Daemon:
    """A daemon whose server cannot be reached: nothing here depends on it."""
    data: dict[str, Any] = {
        "daemon": {"state_dir": str(folder / "state"), "mode": "off"},
        "tap": {"socket": str(socket)} if socket else {},
        "slo": {"tbt": {"limit_s": 0.1}},
        "instance": [{"name": "chat", "url": "http://127.0.0.1:9", "gpus": ["0"]}],
    }
    return Daemon(parse_config(data | more))


@asynccontextmanager
async def alive(made: Daemon) -> AsyncIterator[Daemon]:
    stop = asyncio.Event()
    task = asyncio.create_task(made.run(stop))
    try:
        yield made
    finally:
        stop.set()
        await task


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not done():  # noqa: ASYNC110 (what is waited for sets no event)
            await asyncio.sleep(0.01)


async def test_steps_reach_their_instance_while_the_daemon_runs(tmp_path: Path) -> None:
    """What the plugin sends is seen in the status; at the end the socket is gone and the sender unharmed."""
    path = tmp_path / "tap.sock"
    made = daemon(tmp_path, path)
    recorder = Recorder(CONFIG, str(path), instance="chat")
    async with alive(made):
        await until(path.exists)
        await until(
            lambda: (
                recorder.record(scheduler(), iteration(), 0) or made.runs["chat"].observation.tap.records > 0
            )
        )
        (view,) = Control(made).instances()
        assert view.telemetry.tap is not None
        assert view.telemetry.tap.records_total > 0
        assert view.telemetry.source == "poll"  # no page has confirmed it yet
        assert view.telemetry.tap.unused == "being compared with the metrics page"
    assert not path.exists()
    recorder.record(scheduler(), iteration(), 0)
    recorder.close()


async def test_foreign_records_are_counted_in_the_status(tmp_path: Path) -> None:
    """A server that no instance fits is refused by name and cause."""
    path = tmp_path / "tap.sock"
    made = daemon(tmp_path, path)
    recorder = Recorder(CONFIG, str(path), instance="nobody")
    async with alive(made):
        await until(path.exists)
        recorder.record(scheduler(), iteration(), 0)
        await until(lambda: Control(made).status().tap_refused_total != {})
        assert Control(made).status().tap_refused_total == {"unknown_instance": 1}
    recorder.close()


async def test_a_socket_that_cannot_be_made_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon ticks on by polled metrics, and the log says why."""
    made = daemon(tmp_path, tmp_path / "missing" / "tap.sock")
    async with alive(made):
        await until(lambda: made.ticks > 2)
    assert "going by polled metrics alone" in caplog.text


async def test_without_configuration_there_is_no_tap(tmp_path: Path) -> None:
    """Off by default, and shown as absent rather than as idle."""
    made = daemon(tmp_path, None)
    assert made.tap is None
    (view,) = Control(made).instances()
    assert view.telemetry.tap is None
    assert view.telemetry.source == "poll"


@pytest.mark.parametrize("socket", ["tap.sock", "/" + 107 * "x", "~/tap.sock"])
def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path, socket: str) -> None:
    """Relative, and too long for the kernel: named in the error."""
    with pytest.raises(ConfigError) as caught:
        daemon(tmp_path, None, tap={"socket": socket})
    assert "tap.socket" in str(caught.value)
    assert "absolute path" in str(caught.value)
