"""`kvwatt scale`: how many instances of the pool run, by hand for a limited time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kvwattd.commands.client import DEFAULT_URL, AsJson, Ca, Client, TokenFile, Url
from kvwattd.commands.durations import seconds


def scale(
    instances: Annotated[int | None, typer.Argument(min=1, help="So many in service.")] = None,
    time: Annotated[
        str, typer.Option("--for", metavar="TIME", help="Then planning goes on: 90s, 10m, 1h.")
    ] = "30m",
    end: Annotated[bool, typer.Option("--end", help="Back to automatic at once.")] = False,
    url: Url = DEFAULT_URL,
    ca: Ca = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how many instances run and should, or set their number for a while.

    Only with a pool (pool.enabled) and in mode active, between pool.minimum and pool.maximum; nobody is cut
    off: who leaves is drained first. Changing it needs a token of scope control.
    Examples: kvwatt scale; kvwatt scale 3 --for 2h; kvwatt scale --end
    """
    from kvwattd.api.schemas import MANUAL_MAX_S

    client = Client("scale", url, ca, token_file)
    if end:
        client.delete("/api/v1/pool/scale")
    elif instances is not None:
        body = {"instances": instances, "duration_s": seconds(time, "--for", MANUAL_MAX_S)}
        client.put("/api/v1/pool/scale", body)
    pool = client.get("/api/v1/pool")
    if as_json:
        import json

        typer.echo(json.dumps(pool, indent=2))
    else:
        for line in _told(pool):
            typer.echo(line)


def _told(pool: dict[str, Any]) -> list[str]:
    if not pool["enabled"]:
        return ["there is no pool: pool.enabled = false"]
    lines = []
    for kind in pool["kinds"]:
        wanted = "–" if kind["desired"] is None else kind["desired"]
        lines.append(f"{kind['kind']}: {kind['ready']} in service, {wanted} wanted")
    manual = pool["manual"]
    if manual is not None:
        told = f"by hand: {manual['instances']} for {manual['left_s']:.0f} s more ({manual['by']})"
        lines.append(f"{told}; undo: kvwatt scale --end")
    return lines
