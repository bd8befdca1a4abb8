"""`kvwatt top`: what a running daemon does, live in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands import exits
from kvwattd.commands.client import DEFAULT_URL, Ca, Client, TokenFile, Url

if TYPE_CHECKING:
    import httpx

    from kvwattd.api.schemas import StatusView

KEYS_S = 0.1  # how often keys are looked at
QUIT = frozenset("qQ\x03\x04")


def top(
    every: Annotated[float, typer.Option(min=0.2, max=60.0, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One look, also into a pipe.")] = False,
    url: Url = DEFAULT_URL,
    ca: Ca = None,
    token_file: TokenFile = None,
) -> None:
    """Watch a running daemon: clocks, power, load, promises and decisions, until q or Ctrl-C.

    It only reads. A daemon that stops answering is told and waited for. Into a pipe: --once, or
    kvwatt status --json. Examples: kvwatt top; kvwatt top --every 0.5; kvwatt top --once
    """
    client = Client("top", url, ca, token_file)
    if not once and not (sys.stdout.isatty() and sys.stdin.isatty()):
        told = "a live view needs a terminal"
        client.refuse(told, "kvwatt top --once, or kvwatt status --json", exits.USAGE)
    from rich.console import Console

    from kvwattd.commands.top_screen import frame

    status = client.status()  # what is wrong from the start ends the command
    if once:
        Console().print(frame(status))
        return
    _watch(client, status, every)


def _watch(client: Client, status: StatusView, every_s: float) -> None:
    from rich.live import Live

    from kvwattd.commands.top_screen import frame

    lost: str | None = None
    with client.session() as session, _keys(), Live(frame(status), screen=True, auto_refresh=False) as live:
        try:
            while not _quit_within(every_s):
                status, lost = _look(session, status)
                live.update(frame(status, lost), refresh=True)
        except KeyboardInterrupt:
            return


def _look(session: httpx.Client, before: StatusView) -> tuple[StatusView, str | None]:
    """The status now; the one before, and why, where there is none."""
    import httpx

    from kvwattd.api.schemas import StatusView

    try:
        answer = session.get("/api/v1/status").raise_for_status()
        return StatusView.model_validate_json(answer.text), None
    except (httpx.HTTPError, ValueError) as error:
        return before, str(error).splitlines()[0]


@contextmanager
def _keys() -> Iterator[None]:
    """Single keys, not shown, until the block ends."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quit_within(seconds: float) -> bool:
    """Whether a key to leave was pressed before the time is over; the end of the input is one."""
    import os
    import select

    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], min(left_s, KEYS_S))
        if ready:
            pressed = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
            if not pressed or pressed in QUIT:
                return True
    return False
