"""`kvwatt token`: make a bearer token and put its entry, which opens nothing, into the token file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvwattd.commands.refusal import refuse


def token(
    name: Annotated[str, typer.Argument(help="Who it is for; stands in the audit log.")],
    scope: Annotated[
        Literal["read", "control"], typer.Option(help="`control` may change things, and read.")
    ] = "control",
    file: Annotated[
        Path, typer.Option(help="The token file, as at api.token_file; made where it is missing.")
    ] = Path("/etc/kvwatt/tokens.toml"),
) -> None:
    """Print a new token, once, and add its SHA-256 to the file. A running daemon takes it up at once.

    To withdraw a token delete its entry. Examples: kvwatt token grafana --scope read;
    export KVWATT_TOKEN=$(kvwatt token operator)
    """
    from secrets import token_hex

    from kvwattd.api.tokens import TokenFileError, add_entry

    made = token_hex(32)
    try:
        add_entry(file, name, scope, made)
    except (TokenFileError, OSError) as error:
        refuse("token", f"{file}: {error}", "another NAME, or a --file that this user may write")
    typer.echo(made)
    typer.echo(f"kept in {file} as its SHA-256; the daemon's user must own the file:", err=True)
    typer.echo(f"  chown kvwatt {file}   (where the daemon runs as kvwatt)", err=True)
