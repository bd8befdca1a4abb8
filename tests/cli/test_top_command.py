"""`kvwatt top` on a terminal of its own: it shows, goes on, leaves at q, and the terminal is as before."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from io import StringIO

import pytest
from fake_status import one_instance
from fastapi import FastAPI, Response
from rich.console import Console

from kvwattd.api.schemas import StatusView
from kvwattd.api.schemas.shadow import ShadowView, WouldKeepView
from kvwattd.api.server import ApiServer, Endpoints
from kvwattd.commands.status_screen import screen
from kvwattd.commands.top_screen import frame


class Looks:
    """How often the status was asked for, and whether the daemon answers."""

    def __init__(self) -> None:
        self.count, self.answers = 0, True
        self.url = ""


@pytest.fixture
async def looks() -> AsyncIterator[Looks]:
    app, seen = FastAPI(), Looks()

    @app.get("/api/v1/status")
    async def answer() -> Response:
        seen.count += 1
        return Response(one_instance().model_dump_json(), status_code=200 if seen.answers else 503)

    server = ApiServer(app, Endpoints())
    await server.start()
    seen.url = server.url
    yield seen
    await server.stop()


class Terminal:
    """`kvwatt top` on a pseudo-terminal."""

    def __init__(self, url: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 160))
        self.before = termios.tcgetattr(slave)
        self.shown = ""
        # Ctrl-C reaches only whose terminal it is.
        command = ["setsid", "--ctty", sys.executable, "-m", "kvwattd", "top", "--every", "0.2", "--url", url]
        env = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
        self.slave = slave

    def until(self, text: str, limit_s: float = 120.0) -> None:
        end_s = time.monotonic() + limit_s
        while text not in self.shown:
            assert time.monotonic() < end_s, self.shown[-2000:]
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 65536).decode(errors="replace")

    def key(self, key: bytes) -> int:
        os.write(self.master, key)
        end_s = time.monotonic() + 90.0
        while self.process.poll() is None and time.monotonic() < end_s:  # it may have more to say than fits
            if select.select([self.master], [], [], 0.05)[0]:
                os.read(self.master, 65536)
        assert self.process.returncode is not None, "it did not leave"
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for end in (self.master, self.slave):
            with suppress(OSError):
                os.close(end)


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
async def test_it_lives_and_leaves(looks: Looks, key: bytes) -> None:
    """It looks again and again, says when nobody answers, and exits with 0 with the terminal restored."""
    terminal = Terminal(looks.url)
    try:
        await asyncio.to_thread(terminal.until, "q leaves")
        assert "chat" in terminal.shown
        looks.answers = False
        await asyncio.to_thread(terminal.until, "no answer")
        assert looks.count >= 2
        assert await asyncio.to_thread(terminal.key, key) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


def in_shadow() -> StatusView:
    status = one_instance()
    (view,) = status.instances
    kept = {metric: WouldKeepView(met=996, total=1000, ratio=0.996) for metric in view.attainment}
    shadow = ShadowView(
        clock_mhz=900,
        baseline_j=1000.0,
        would_j=690.0,
        saved_j=310.0,
        saved_ratio=0.31,
        low_ratio=0.29,
        high_ratio=0.33,
        attainment=kept,
    )
    changed = view.model_copy(update={"shadow": shadow, "savings": None})
    return status.model_copy(update={"instances": [changed]})


def text_of(shown: object) -> str:
    console = Console(width=160, file=StringIO())
    console.print(shown)
    return str(console.file.getvalue())  # type: ignore[attr-defined]  # it is a StringIO


def test_what_shadow_mode_would_do_is_told_as_such() -> None:
    """On both screens: what it would set, save and keep, as estimates, and that nothing is set."""
    told = text_of(screen(in_shadow()))
    assert "900 MHz; shadow mode sets nothing" in told
    assert "31.0 % ± 2" in told and "TBT 99.60 %: an estimate" in told
    line = next(line for line in text_of(frame(in_shadow())).splitlines() if line.startswith("chat  "))
    assert "(900 MHz)" in line and "(31.0 %)" in line
