"""The daemon's page beside the demonstration: where it is, what opens its controls, how it stays up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from secrets import token_hex
from typing import NoReturn

from rich.console import Console

from kvwatt_sim.demo.daemon import toml
from kvwatt_sim.demo.daemon_process import DaemonProcess
from kvwatt_sim.demo.settings import PageOptions
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions, Route
from kvwatt_sim.traces import TraceRequest
from kvwattd.api.tokens import add_entry

CHECK_S = 0.5


class DemoPage:
    """The section [api] of the daemon, with a token made for this run and gone with its folder."""

    def __init__(self, options: PageOptions, folder: Path) -> None:
        self._options = options
        self._token, self._file = token_hex(8), folder / "tokens.toml"
        add_entry(self._file, "demo", "control", self._token)

    @property
    def api(self) -> str:
        """TOML."""
        return f"[api]\nport = {self._options.port}\ntoken_file = {toml(self._file)}\n"

    def tell(self, console: Console, url: str) -> None:
        """Where to look. Whoever only measures is told no token: a promise changed by hand is another run."""
        _say(console, f"live page: {url}/")
        if self._options.keep:
            _say(console, f"token for its controls: {self._token}")


async def keep_up(
    target: str | Route, draw: Callable[[int], Sequence[TraceRequest]], length_s: float, daemon: DaemonProcess
) -> NoReturn:
    """Requests without an end: a draw of `length_s` seconds after another, until cancelled.

    Raises DemoError when the daemon ends. What becomes of a request is for the page to show.
    """
    running: set[asyncio.Future[tuple[BaseException | None]]] = set()
    number = 0
    try:
        while True:
            number += 1
            load = LoadGenerator(target, draw(number), LoadOptions(seed=number))
            running.add(asyncio.gather(load.run(time.monotonic()), return_exceptions=True))
            until_s = time.monotonic() + length_s
            while time.monotonic() < until_s:
                daemon.check()
                await asyncio.sleep(CHECK_S)
            running = {one for one in running if not one.done()}
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def tell_kept(console: Console, url: str) -> None:
    """That the result is there and all goes on."""
    _say(console, f"requests go on; live page: {url}/  (Ctrl-C ends it)")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
