"""`kvwatt status`: one screen of what a running daemon does, from its REST interface."""

from __future__ import annotations

import typer

from kvwattd.commands.client import DEFAULT_URL, AsJson, Ca, Client, TokenFile, Url


def status(
    url: Url = DEFAULT_URL, ca: Ca = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Show what a running daemon does, on one screen; `kvwatt top` shows it live.

    Examples: kvwatt status; kvwatt status --url unix:/run/kvwatt-api/api.sock;
    kvwatt status --json | jq '.instances[].regime'
    """
    client = Client("status", url, ca, token_file)
    text = client.text("/api/v1/status")
    if as_json:
        typer.echo(text)
        return
    from rich.console import Console

    from kvwattd.commands.status_screen import screen

    Console().print(screen(client.parse(text)))
