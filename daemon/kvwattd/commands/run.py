"""`kvwatt run`: the composition root, top to bottom."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kvwattd.config import Config


def run(
    config: Annotated[
        Path, typer.Option(help="Configuration file; deploy/kvwatt.example.toml documents every key.")
    ] = Path("/etc/kvwatt/kvwatt.toml"),
) -> None:
    """Run the daemon beside the configured vLLM servers until it is told to stop.

    Exit codes: 0 stopped, 2 refused its configuration or surroundings.
    """
    from kvwattd.config import ConfigError, load_config

    try:
        loaded = load_config(config)
    except ConfigError as error:
        typer.echo(f"kvwatt: {error}", err=True)
        raise typer.Exit(2) from error
    from kvwattd.api.server import ApiUnavailable
    from kvwattd.logs import configure_logging

    configure_logging(loaded.daemon.log_level, loaded.daemon.log_format)
    try:
        asyncio.run(_serve(config, loaded))
    except ApiUnavailable as error:
        typer.echo(f"kvwatt: {error}", err=True)
        raise typer.Exit(2) from error


async def _serve(path: Path, loaded: Config) -> None:
    from kvwattd.api.app import create_app
    from kvwattd.api.auth import TokenFile
    from kvwattd.api.server import ApiServer
    from kvwattd.control import Control
    from kvwattd.loop import Daemon
    from kvwattd.sdnotify import notify

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    daemon = Daemon(loaded)
    api = ApiServer(
        create_app(Control(daemon), TokenFile(loaded.api.token_file)), loaded.api.host, loaded.api.port
    )
    await api.start()
    print(f"kvwatt: {loaded.daemon.mode} mode, {path}, REST and metrics at {api.url}", file=sys.stderr)  # noqa: T201
    notify("READY=1")
    try:
        await daemon.run(stop)
    finally:
        notify("STOPPING=1")
        await api.stop()
