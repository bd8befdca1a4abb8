"""`kvwatt status`: one screen of what a running daemon does, from its REST interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from kvwattd.api.schemas import StatusView

DEFAULT_URL = "http://127.0.0.1:8484"
DEADLINE_S = 5.0


def status(
    url: Annotated[str, typer.Option(help="Base URL of the daemon.", envvar="KVWATT_URL")] = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show what a running daemon does.

    Exit codes: 0 shown, 1 the daemon cannot be reached or did not answer with a status.
    """
    text = _fetch(url)
    if as_json:
        typer.echo(text)
        return
    from rich.console import Console

    from kvwattd.commands.status_screen import screen

    Console().print(screen(_parse(url, text)))


def _fetch(url: str) -> str:
    import httpx

    path = f"{url.rstrip('/')}/api/v1/status"
    try:
        return httpx.get(path, timeout=DEADLINE_S, trust_env=False).raise_for_status().text
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"{path}: {error}; is `kvwatt run` running, and is this its address? (--url)", error)


def _parse(url: str, text: str) -> StatusView:
    from pydantic import ValidationError

    from kvwattd.api.schemas import StatusView

    try:
        return StatusView.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        _fail(f"{url} is no kvwatt daemon of this version: {where}: {first['msg']}", error)


def _fail(message: str, cause: Exception) -> NoReturn:
    typer.echo(f"kvwatt: {message}", err=True)
    raise typer.Exit(1) from cause
