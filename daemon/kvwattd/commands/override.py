"""`kvwatt override`: hold a clock by hand for a limited time."""

from __future__ import annotations

from typing import Annotated

import typer

from kvwattd.commands.client import DEFAULT_URL, AsJson, Ca, Client, TokenFile, Url
from kvwattd.commands.durations import seconds

DEFAULT = "default"


def override(
    instance: Annotated[str, typer.Argument(help="Its name, as in kvwatt status.")],
    clock: Annotated[
        str | None, typer.Argument(metavar="[MHZ|default]", help="SM clock in MHz, or the driver's default.")
    ] = None,
    time: Annotated[
        str, typer.Option("--for", metavar="TIME", help="Then control goes on: 90s, 10m, 1h.")
    ] = "10m",
    end: Annotated[bool, typer.Option("--end", help="Back to automatic at once.")] = False,
    url: Url = DEFAULT_URL,
    ca: Ca = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Hold an instance's GPUs at a clock for a while, or show what is held.

    Only in mode active, within the configured bounds, for an hour at most; a restart of the daemon ends it.
    Changing it needs a token of scope control. Examples: kvwatt override chat 1200 --for 5m;
    kvwatt override chat default --for 1h; kvwatt override chat --end
    """
    from kvwattd.api.schemas import OVERRIDE_MAX_S

    client, path = Client("override", url, ca, token_file), f"/api/v1/instances/{instance}/override"
    if end:
        client.delete(path)
    elif clock is not None:
        body = {"clock_mhz": _mhz(clock), "duration_s": seconds(time, "--for", OVERRIDE_MAX_S)}
        client.put(path, body)
    held = client.get(f"/api/v1/instances/{instance}")["override"]
    if as_json:
        import json

        typer.echo(json.dumps(held))
    elif held is None:
        typer.echo(f"{instance}: automatic")
    else:
        clock_mhz = held["clock_mhz"]
        shown = "driver default" if clock_mhz is None else f"{clock_mhz} MHz"
        typer.echo(
            f"{instance}: {shown} for {held['left_s']:.0f} s more; undo: kvwatt override {instance} --end"
        )


def _mhz(text: str) -> int | None:
    if text == DEFAULT:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise typer.BadParameter(
            f"{text!r}: a clock in whole MHz or {DEFAULT!r} is accepted", param_hint="MHZ"
        )
    return int(text)
