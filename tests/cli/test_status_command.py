"""`kvwatt status` against a served API."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import pytest
from fake_status import one_instance
from fastapi import FastAPI

from kvwattd.api.schemas import StatusView
from kvwattd.api.server import ApiServer, Endpoints
from kvwattd.commands.status_screen import duration


async def status(*args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "kvwattd", "status", *args),
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
    """When nobody answers, status ends with 1 and says what to look at."""
    code, _, err = await status("--url", "http://127.0.0.1:9")
    assert code == 1
    assert "kvwatt run" in err
    assert "Traceback" not in err


async def test_another_server_is_recognised(url: str) -> None:
    """An answer that is no status is refused, naming what is missing."""
    code, _, err = await status("--url", f"{url}/other")
    assert code == 1
    assert "no kvwatt daemon" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (62, "1 min 02 s"), (3723, "1 h 02 min 03 s")])
def test_durations_read_naturally(seconds: float, shown: str) -> None:
    """Leading parts that are zero are left out."""
    assert duration(seconds) == shown
