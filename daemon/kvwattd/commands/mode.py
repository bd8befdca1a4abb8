"""`kvwatt mode`: show or change what a running daemon may do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands import exits
from kvwattd.commands.client import DEFAULT_URL, AsJson, Ca, Client, TokenFile, Url

if TYPE_CHECKING:
    from kvwattd.api.schemas import InstanceView, StatusView

POLL_S = 0.2


class Wanted(StrEnum):
    """A mode, or the one that the configuration names."""

    OFF = "off"
    SHADOW = "shadow"
    ACTIVE = "active"
    CONFIGURED = "configured"


# Regimes in which the mode has taken effect.
_IN_EFFECT = {"off": {"off"}, "shadow": {"shadow"}, "active": {"active", "override"}}


def mode(
    wanted: Annotated[
        Wanted | None,
        typer.Argument(metavar="[MODE]", help="off, shadow, active, or configured: as the file says."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0.0, max=600.0, help="Seconds until it must be in effect; 0: do not wait.")
    ] = 10.0,
    url: Url = DEFAULT_URL,
    ca: Ca = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the mode, or change it: off only looks, shadow decides and sets nothing, active sets clocks.

    What was set outlives a restart of the daemon; `kvwatt mode configured` goes back to the file's.
    Changing it needs a token of scope control. Examples: kvwatt mode; kvwatt mode active --dry-run;
    kvwatt mode active
    """
    client = Client("mode", url, ca, token_file)
    before = client.status()
    if wanted is None:
        _show(before, as_json)
        return
    for line in consequences(before, wanted):
        typer.echo(line, err=as_json)
    if dry_run:
        return
    if wanted is Wanted.CONFIGURED:
        client.delete("/api/v1/mode")
    else:
        client.put("/api/v1/mode", {"mode": str(wanted)})
    after = _settled(client, wait)
    _show(after, as_json)
    late = [view for view in after.instances if not _in_effect(after, view)]
    if wait and late:
        told = "; ".join(f"{view.name}: {view.regime}: {view.regime_reason}" for view in late)
        client.refuse(
            f"mode {after.mode} is set and not in effect yet: {told}",
            "kvwatt status; kvwatt doctor tells what is missing",
        )


def consequences(status: StatusView, wanted: Wanted) -> Iterator[str]:
    """What the change comes to, in words."""
    names = ", ".join(view.name for view in status.instances) or "no instance"
    if wanted is Wanted.CONFIGURED:
        yield f"mode {status.mode} -> the configuration's, for {names}"
        return
    yield f"mode {status.mode} -> {wanted}, for {names}"
    if wanted is Wanted.ACTIVE:
        yield "kvwatt sets GPU clocks through the guard, under its lease; undo: kvwatt mode shadow"
        if status.pool.enabled:
            yield "and starts, drains and rests instances of the pool"
    elif wanted is Wanted.SHADOW:
        yield "clocks go back to driver default at once; decisions are made and shown, and nothing is set"
    else:
        yield "clocks go back to driver default at once; nothing is decided"


def _settled(client: Client, wait_s: float) -> StatusView:
    """The status once the mode is in effect everywhere, or when the time is over."""
    end_s = time.monotonic() + wait_s
    while True:
        status = client.status()
        if all(_in_effect(status, view) for view in status.instances) or time.monotonic() >= end_s:
            return status
        time.sleep(POLL_S)


def _in_effect(status: StatusView, view: InstanceView) -> bool:
    return str(view.regime) in _IN_EFFECT[str(status.mode)] | {"parked"}


def _show(status: StatusView, as_json: bool) -> None:
    kept = status.settings.mode
    if as_json:
        import json

        regimes = {
            view.name: {"regime": view.regime, "reason": view.regime_reason} for view in status.instances
        }
        document = {"mode": status.mode, "set_by": kept.by if kept else None, "instances": regimes}
        typer.echo(json.dumps(document, indent=2))
        return
    by = (
        f"set over REST by {kept.by}; kvwatt mode configured goes back to the file's"
        if kept
        else "as configured"
    )
    typer.echo(f"mode {status.mode} ({by})")
    for view in status.instances:
        typer.echo(f"  {view.name}: {view.regime}: {view.regime_reason}")


__all__ = ["Wanted", "consequences", "exits", "mode"]
