"""`kvwatt status` against a served API."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import pytest
from fake_status import one_instance
from fastapi import FastAPI, Header, Response

from kvwattd.api.schemas import (
    ConfigStateView,
    ModeSetView,
    ReloadView,
    SecurityView,
    SettingsView,
    StatusView,
)
from kvwattd.api.server import ApiServer, Endpoints
from kvwattd.commands.status_alarms import alarms
from kvwattd.commands.status_screen import duration
from kvwattd.config import Mode


async def status(*args: str, **env: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "kvwattd", "status", *args),
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = FastAPI()

    @app.get("/api/v1/status")
    async def answer() -> StatusView:
        return one_instance()

    @app.get("/other/api/v1/status")
    async def other() -> dict[str, str]:
        return {"hello": "world"}

    server = ApiServer(app, Endpoints())
    await server.start()
    yield server.url
    await server.stop()


async def test_screen_shows_clock_promise_and_estimate(url: str) -> None:
    """One screen tells regime, clock, load, attainment, and that savings are an estimate."""
    code, out, _ = await status("--url", url)
    assert code == 0
    for text in ("mode shadow", "900 MHz", "8 running", "attained 99.00 %", "an estimate", "would break TBT"):
        assert text in out
    assert "None" not in out


async def test_json_is_the_status_itself(url: str) -> None:
    """--json prints what REST answers."""
    code, out, _ = await status("--url", url, "--json")
    assert code == 0
    assert StatusView.model_validate(json.loads(out)) == one_instance()


async def test_no_daemon_is_told_with_what_to_do() -> None:
    """When nobody answers, status ends with 3 and says what to look at."""
    code, _, err = await status("--url", "http://127.0.0.1:9")
    assert code == 3
    assert "kvwatt run" in err
    assert "Traceback" not in err


async def test_another_server_is_recognised(url: str) -> None:
    """An answer that is no status is refused, naming what is missing."""
    code, _, err = await status("--url", f"{url}/other")
    assert code == 1
    assert "no kvwatt daemon" in err
    assert "Traceback" not in err


async def test_alarms_stand_on_top() -> None:
    """What stands over the file, what was refused and what awaits a restart is told with the way out."""
    last = ReloadView(ok=False, unix_s=1.0, errors=["daemon.tick_s: got 0"], restart=["api.port"])
    status = one_instance().model_copy(
        update={
            "settings": SettingsView(
                mode=ModeSetView(by="operator", unix_s=0.0, mode=Mode.OFF), last_error="disk full"
            ),
            "config": ConfigStateView(last=last),
            "security": SecurityView(token_alarm="is gone", audit_error="no space"),
        }
    )
    told = dict(alarms(status))
    expected = {
        "mode off: overridden by REST at 1970-01-01 00:00:00Z by operator; "
        "back to the file: kvwatt mode configured": False,
        "settings: disk full": True,
        "configuration refused at 1970-01-01 00:00:01Z: daemon.tick_s: got 0": True,
        "in force only after a restart: api.port": False,
        "tokens: is gone": True,
        "audit log: no space": True,
    }
    assert told == expected
    assert not list(alarms(one_instance()))


async def test_status_over_the_unix_socket_and_with_a_token(tmp_path: Path) -> None:
    """The address may be a socket; a token comes from the environment and is never shown."""
    app, seen = FastAPI(), []

    @app.get("/api/v1/status")
    async def answer(authorization: Annotated[str, Header()] = "") -> Response:
        seen.append(authorization)
        if not authorization:
            return Response(status_code=401)
        return Response(one_instance().model_dump_json(), media_type="application/json")

    path = tmp_path / "api.sock"
    server = ApiServer(app, Endpoints(None, socket=path))
    await server.start()
    try:
        code, _, err = await status("--url", f"unix:{path}")
        assert code == 4 and "KVWATT_TOKEN" in err
        code, out, err = await status("--url", f"unix:{path}", KVWATT_TOKEN="only-for-this-test")
        assert code == 0 and "mode shadow" in out and "only-for-this-test" not in out + err
    finally:
        await server.stop()
    assert seen == ["", "Bearer only-for-this-test"]


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (62, "1 min 02 s"), (3723, "1 h 02 min 03 s")])
def test_durations_read_naturally(seconds: float, shown: str) -> None:
    """Leading parts that are zero are left out."""
    assert duration(seconds) == shown
