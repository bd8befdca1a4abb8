"""Gathers the facts. Reads only, sets nothing; every collector has a deadline and turns errors into facts."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import httpx
import pynvml

from kvwatt.artifact import MANIFEST, ArtifactError, load_manifest
from kvwattd.api.tokens import TokenFileError, read_tokens
from kvwattd.config import Config, ConfigError, InstanceConfig, load_config
from kvwattd.doctor.facts import (
    Facts,
    GpuFact,
    GuardFact,
    InstanceFact,
    ModelFact,
    PoolFact,
    PortFact,
    Privilege,
    Process,
    TimeFact,
    TokenFact,
)
from kvwattd.doctor.look_at_pool import look_at_pool
from kvwattd.guard.client import GuardClient
from kvwattd.guard.nvml_session import NvmlCallError, NvmlSession, failure
from kvwattd.guard.protocol import GuardError, Role
from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.telemetry.gpu import GpuReader, GpuUnavailable
from kvwattd.telemetry.poller import Poller, TelemetryError

DEADLINE_S = 5.0
_OWN_DEADLINE_S = 1.0  # a kvwatt daemon answers in milliseconds
_CAP_SYS_ADMIN = 21  # linux/capability.h
_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


async def collect(config_path: Path | None, proc: Path = Path("/proc")) -> Facts:
    """All facts, gathered at the same time."""
    config, errors = await asyncio.to_thread(_config, config_path)
    names, driver_error = await _gpu_names(config)
    gpus = await asyncio.gather(*(_gpu(name) for name in names))
    return Facts(
        config=config,
        config_errors=errors,
        driver_error=driver_error,
        gpus=tuple(gpus),
        privilege=await asyncio.to_thread(privilege, proc),
        processes=await asyncio.to_thread(processes, proc),
        time=await asyncio.to_thread(_time),
        guard=await _guard(config) if config else None,
        instances=tuple(await asyncio.gather(*(_instance(i) for i in config.instances))) if config else (),
        model=await asyncio.to_thread(_model, config) if config else None,
        port=await _port(config) if config else None,
        token=await asyncio.to_thread(_token, config) if config else TokenFact(),
        state_dir_error=await asyncio.to_thread(_state_dir_error, config) if config else "",
        pool=await look_at_pool(config) if config else PoolFact(),
    )


def _config(path: Path | None) -> tuple[Config | None, tuple[str, ...]]:
    if path is None:
        return None, ()
    try:
        return load_config(path), ()
    except ConfigError as error:
        return None, tuple(str(problem) for problem in error.problems)


AMD = "AMD-"  # what the UUIDs begin with of GPUs that need no NVML


async def _gpu_names(config: Config | None) -> tuple[tuple[str, ...], str]:
    """The configured GPUs, else all; and why there is no driver, if there is none."""
    wanted = tuple(gpu for item in config.instances for gpu in item.gpus) if config is not None else ()
    others = tuple(name for name in wanted if name.startswith(AMD))
    if wanted and others == wanted:
        return others, ""
    worker = DeadlineWorker("the driver")
    try:
        count = await worker.call(_count_gpus, DEADLINE_S)
    except (NvmlCallError, CallTimeoutError) as error:
        return others, str(error)
    finally:
        worker.close()
    return wanted if config is not None else tuple(str(index) for index in range(count)), ""


def _count_gpus() -> int:
    session = NvmlSession()
    try:
        session.start()
        count = int(pynvml.nvmlDeviceGetCount())
        session.close()
    except pynvml.NVMLError as error:
        raise failure(error, "NVML cannot be used") from None
    return count


async def _gpu(name: str) -> GpuFact:
    reader = GpuReader([name], DEADLINE_S)
    try:
        [info] = await reader.start()
    except GpuUnavailable as error:
        reader.close()
        return GpuFact(name, error=str(error))
    try:
        samples = await reader.read()
        return GpuFact(name, info, samples[info.uuid])
    except GpuUnavailable as error:
        return GpuFact(name, info, error=str(error))
    finally:
        reader.close()


async def _guard(config: Config) -> GuardFact:
    """Asked for its status only: that takes control from nobody."""
    client = GuardClient(config.guard.socket, DEADLINE_S)
    try:
        hello = await client.connect(Role.STATUS)
        return GuardFact(config.guard.socket, hello, await client.status())
    except GuardError as error:
        return GuardFact(config.guard.socket, error=error.message)
    finally:
        await client.close()


async def _instance(config: InstanceConfig) -> InstanceFact:
    poller = Poller(config.url, DEADLINE_S, engine=config.engine, model_name=config.model_name)
    try:
        layout = await poller.check_layout()
        return InstanceFact(config, await poller.version(), layout)
    except TelemetryError as error:
        return InstanceFact(config, error=f"{error.cause}: {error.detail}")
    finally:
        await poller.close()


def _model(config: Config) -> ModelFact:
    path = config.model.path
    try:
        return ModelFact(path, exists=True, manifest=load_manifest(path))
    except ArtifactError as error:
        return ModelFact(path, exists=_is_there(path / MANIFEST), error=str(error))


def _is_there(path: Path) -> bool:
    """Also true for what may not be looked at: that is no missing model."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


async def _port(config: Config) -> PortFact | None:
    if not config.api.tcp:
        return None
    host, port, tls = config.api.host, config.api.port, config.api.tls_cert is not None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        ours = await _is_kvwatt(host, port, tls)
        return PortFact(host, port, error.strerror or str(error), ours, tls)
    return PortFact(host, port, tls=tls)


async def _is_kvwatt(host: str, port: int, tls: bool) -> bool:
    address = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    # Nothing secret is sent: the certificate need not be one that this user trusts.
    async with httpx.AsyncClient(trust_env=False, timeout=_OWN_DEADLINE_S, verify=False) as client:  # noqa: S501
        try:
            page = await client.get(f"{address}/healthz")
        except (httpx.HTTPError, httpx.InvalidURL):
            return False
    return b'"last_tick_age_s"' in page.content[:100]


def _token(config: Config) -> TokenFact:
    path = config.api.token_file
    if path is None:
        return TokenFact()
    try:
        return TokenFact(path, len(read_tokens(path, any_owner=os.geteuid() == 0)))
    except FileNotFoundError:
        return TokenFact(path, error="does not exist")
    except TokenFileError as error:
        return TokenFact(path, error=str(error))


def _state_dir_error(config: Config) -> str:
    path = config.daemon.state_dir
    if not path.is_dir():
        return f"{path} is not a folder"
    return "" if os.access(path, os.W_OK | os.X_OK) else f"{path} cannot be written by user id {os.geteuid()}"


def privilege(proc: Path) -> Privilege:
    """Of this process: effective user and effective capabilities."""
    lines = (proc / "self" / "status").read_text().splitlines()
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return Privilege(os.geteuid(), bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1))


def processes(proc: Path) -> tuple[Process, ...]:
    """Every process that can be seen, by the kernel's name for it; those that end meanwhile are left out."""
    found = []
    for folder in proc.iterdir():
        if folder.name.isdigit():
            name = _first_line(folder / "comm")
            if name is not None:
                found.append(Process(int(folder.name), name))
    return tuple(found)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").split("\n", 1)[0]
    except OSError:
        return None


def _time() -> TimeFact:
    return TimeFact(_first_line(_CLOCKSOURCE), time.get_clock_info("monotonic").resolution)
