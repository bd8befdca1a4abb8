"""`kvwatt slo`: show or change the promises of a running daemon."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kvwattd.commands.client import DEFAULT_URL, AsJson, Ca, Client, TokenFile, Url

NONE = "none"
_LIMIT = "Limit in seconds, or none: not promised."


def slo(
    instance: Annotated[str | None, typer.Argument(help="Its name, as in kvwatt status.")] = None,
    ttft: Annotated[str | None, typer.Option(metavar="S|none", help=f"Time to first token. {_LIMIT}")] = None,
    tbt: Annotated[str | None, typer.Option(metavar="S|none", help=f"Time between tokens. {_LIMIT}")] = None,
    e2e: Annotated[
        str | None, typer.Option(metavar="S|none", help=f"Arrival to last token. {_LIMIT}")
    ] = None,
    quantile: Annotated[
        float | None, typer.Option(min=0.5, max=0.99999, help="Share of requests, of the limits given.")
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to the configuration's promises.")] = False,
    url: Url = DEFAULT_URL,
    ca: Ca = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the promises in force, or change those of an instance; what is not named stays.

    What was set outlives a restart of the daemon. Changing it needs a token of scope control.
    Examples: kvwatt slo; kvwatt slo chat --ttft 1.5 --quantile 0.999; kvwatt slo chat --e2e none;
    kvwatt slo chat --reset
    """
    client = Client("slo", url, ca, token_file)
    wanted = {"ttft": ttft, "tbt": tbt, "e2e": e2e}
    changes = {name: _limit(name, text) for name, text in wanted.items() if text is not None}
    if (changes or reset or quantile is not None) and instance is None:
        raise typer.BadParameter("whose promises? give the instance's name", param_hint="INSTANCE")
    if reset:
        client.delete(f"/api/v1/slos/{instance}")
    elif changes or quantile is not None:
        before = client.get(f"/api/v1/slos/{instance}")
        client.put(f"/api/v1/slos/{instance}", changed(before, changes, quantile))
    found = (
        client.get("/api/v1/slos") if instance is None else {instance: client.get(f"/api/v1/slos/{instance}")}
    )
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    for name, promises in found.items():
        typer.echo(f"{name}: {_told(promises)}")


def _limit(name: str, text: str) -> float | None:
    if text == NONE:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise typer.BadParameter(
            f"{text!r}: seconds above 0, or {NONE!r}, are accepted", param_hint=f"--{name}"
        )
    return value


def changed(
    before: dict[str, Any], limits: dict[str, float | None], quantile: float | None
) -> dict[str, Any]:
    """The promises with these limits; a quantile alone is that of every promise."""
    after = dict(before)
    for name, limit_s in limits.items():
        old = before.get(name) or {}
        after[name] = None if limit_s is None else {**old, "limit_s": limit_s}
    for name in limits or before:
        if quantile is not None and after[name] is not None:
            after[name] = {**after[name], "quantile": quantile}
    return after


def _told(promises: dict[str, Any]) -> str:
    kept = {name: target for name, target in promises.items() if target is not None}
    each = (f"{name.upper()} {t['limit_s']:g} s for {100 * t['quantile']:g} %" for name, t in kept.items())
    return ", ".join(each) or "nothing is promised"
