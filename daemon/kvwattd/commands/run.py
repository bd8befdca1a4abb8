"""`kvwatt run`: the composition root, top to bottom."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands.refusal import refuse

if TYPE_CHECKING:
    from kvwattd.api.auth import Access
    from kvwattd.api.server import ApiServer, Endpoints
    from kvwattd.config import ApiConfig, Config
    from kvwattd.reload import Reloader


def run(
    config: Annotated[
        Path,
        typer.Option(
            help="Configuration file; deploy/kvwatt.example.toml documents every key.", envvar="KVWATT_CONFIG"
        ),
    ] = Path("/etc/kvwatt/kvwatt.toml"),
) -> None:
    """Run the daemon beside the configured vLLM servers until it is told to stop.

    SIGHUP reads configuration, tokens and certificates again. Ends with 2 where it refuses its
    configuration or surroundings. Under systemd logs carry journald's priorities: journalctl -u kvwatt -p
    warning; daemon.log_format = "json" writes an object per line.
    """
    from kvwattd.config import ConfigError, load_config

    try:
        loaded = load_config(config)
    except ConfigError as error:
        refuse("run", error, f"edit {config}; kvwatt doctor --config {config} checks the rest too")
    from kvwattd.api.listeners import ApiUnavailable
    from kvwattd.api.tokens import TokenFileError
    from kvwattd.instance_lock import Locked, only_daemon
    from kvwattd.logs import configure_logging

    configure_logging(loaded.daemon.log_level, loaded.daemon.log_format)
    try:
        with only_daemon(loaded.daemon.state_dir):
            asyncio.run(_serve(config, loaded))
    except (ApiUnavailable, TokenFileError, Locked) as error:
        refuse("run", error, f"kvwatt doctor --config {config}")


async def _serve(path: Path, loaded: Config) -> None:
    from kvwattd.api.app import create_app
    from kvwattd.api.server import ApiServer
    from kvwattd.control import Control
    from kvwattd.loop import Daemon
    from kvwattd.reload import Reloader
    from kvwattd.sdnotify import notify
    from kvwattd.settings import FILE_NAME, SettingsFile
    from kvwattd.shortages import tell_shortages_once

    tell_shortages_once()
    settings = SettingsFile(loaded.daemon.state_dir / FILE_NAME)
    settings.load(loaded, time.time())
    access = _access(loaded)
    daemon = Daemon(loaded, settings=settings)
    reloader = Reloader(path, daemon)
    api = ApiServer(create_app(Control(daemon, access, reloader), access), _endpoints(loaded.api))
    stop = asyncio.Event()
    hangups = _signals(stop)
    await api.start()
    print(f"kvwatt: {daemon.mode} mode, {path}, REST and metrics at {api.url}", file=sys.stderr)  # noqa: T201
    renewing = asyncio.create_task(_renew(hangups, reloader, access, api))
    notify("READY=1")
    try:
        await daemon.run(stop)
    finally:
        notify("STOPPING=1")
        renewing.cancel()
        await api.stop()


def _signals(stop: asyncio.Event) -> asyncio.Event:
    """SIGTERM and SIGINT set `stop`; SIGHUP sets what is returned."""
    hangup = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    return hangup


def _access(loaded: Config) -> Access:
    from kvwattd.api.auth import Access
    from kvwattd.api.limits import RateLimit
    from kvwattd.api.tokens import TokenFile
    from kvwattd.audit import AuditLog

    tokens = TokenFile(loaded.api.token_file)
    tokens.load()
    return Access(
        tokens=tokens,
        audit=AuditLog(loaded.daemon.state_dir / "audit.jsonl"),
        writes=RateLimit(loaded.api.writes_per_minute),
        read_access=loaded.api.read_access,
    )


def _endpoints(api: ApiConfig) -> Endpoints:
    from kvwattd.api.listeners import Tls
    from kvwattd.api.server import Endpoints

    return Endpoints(
        host=api.host if api.tcp else None,
        port=api.port,
        tls=Tls(api.tls_cert, api.tls_key) if api.tls_cert and api.tls_key else None,
        socket=api.socket,
        socket_mode=int(api.socket_mode, 8),
        socket_group=api.socket_group,
    )


async def _renew(hangup: asyncio.Event, reloader: Reloader, access: Access, api: ApiServer) -> None:
    """At each SIGHUP: configuration, tokens, certificate; each keeps what it had where the new is refused."""
    import logging

    from kvwattd.api.listeners import ApiUnavailable
    from kvwattd.config import ConfigError
    from kvwattd.sdnotify import notify

    log = logging.getLogger(__name__)
    while True:
        await hangup.wait()
        hangup.clear()
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        await asyncio.to_thread(access.tokens.refresh)
        try:
            await api.renew_tls()
        except ApiUnavailable as error:
            log.error("api: the certificate before stays in use: %s", error)
        try:
            done = (await reloader.reload()).model_dump(mode="json", exclude={"unix_s"})
            await access.audit.record("SIGHUP", "signal", "reload", 200, after=done)
        except ConfigError as error:
            await access.audit.record("SIGHUP", "signal", "reload", 409, detail=str(error))
        except Exception:
            log.exception("configuration: the reload ended half-way; restart kvwatt")
        notify("READY=1")
