"""`kvwatt status`: one screen of what a running daemon does, from its REST interface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands.refusal import refuse

if TYPE_CHECKING:
    import httpx

    from kvwattd.api.schemas import StatusView

DEFAULT_URL = "http://127.0.0.1:8484"
DEADLINE_S = 5.0


def status(
    url: Annotated[
        str,
        typer.Option(help="Base URL of the daemon, or unix:PATH of its socket.", envvar="KVWATT_URL"),
    ] = DEFAULT_URL,
    ca: Annotated[
        Path | None, typer.Option(help="Certificate to trust, in PEM, where the daemon serves HTTPS.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show what a running daemon does.

    Where reading needs a token, it is taken from KVWATT_TOKEN. Exit codes: 0 shown, 1 the daemon cannot be
    reached or did not answer with a status.
    """
    text = _fetch(url, ca)
    if as_json:
        typer.echo(text)
        return
    from rich.console import Console

    from kvwattd.commands.status_screen import screen

    Console().print(screen(_parse(url, text)))


def _fetch(url: str, ca: Path | None) -> str:
    import httpx

    try:
        with _client(url, ca) as client:
            return client.get("/api/v1/status").raise_for_status().text
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        hint = "see that `kvwatt run` is running, and that this is its address (--url)"
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
            hint = "set KVWATT_TOKEN to a token of scope read: kvwatt token NAME --scope read"
        refuse("status", f"{url}: {error}", hint, 1)


def _client(url: str, ca: Path | None) -> httpx.Client:
    """Raises OSError where the certificate cannot be read."""
    import os
    import ssl

    import httpx

    token = os.environ.get("KVWATT_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if url.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=url.removeprefix("unix:"))
        return httpx.Client(
            transport=transport, base_url="http://localhost", headers=headers, timeout=DEADLINE_S
        )
    trusted = ssl.create_default_context(cafile=str(ca) if ca else None)
    return httpx.Client(
        base_url=url.rstrip("/"), headers=headers, timeout=DEADLINE_S, trust_env=False, verify=trusted
    )


def _parse(url: str, text: str) -> StatusView:
    from pydantic import ValidationError

    from kvwattd.api.schemas import StatusView

    try:
        return StatusView.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        told = f"{url} is no kvwatt daemon of this version: {where}: {first['msg']}"
        refuse("status", told, "give the daemon's address (--url), and use the kvwatt of its version", 1)
