"""Backend and router of a pool as its configuration names them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

from kvwattd.config import Config
from kvwattd.config_pool import BackendName, Rest, RouterName
from kvwattd.instances.backend import Backend, BackendError, Cause
from kvwattd.instances.haproxy import HaproxyRouter, HaproxySettings
from kvwattd.instances.hooks import HookSettings, HooksRouter
from kvwattd.instances.http_sd import HttpSdRouter
from kvwattd.instances.kubernetes import KubernetesBackend, Workload
from kvwattd.instances.kubernetes_api import KubeApi
from kvwattd.instances.placement import Need, Placement
from kvwattd.instances.process import Launch, ProcessBackend
from kvwattd.instances.process_state import StopLimits
from kvwattd.instances.router import NoRouter, Router
from kvwattd.instances.systemd import SystemdBackend
from kvwattd.instances.vllm_sleep import SleepBackend, SleepParams

log = logging.getLogger(__name__)


class Late:
    """GPUs are looked at before a start, and whose processes are on them only the backend knows."""

    def __init__(self) -> None:
        self._placement: Placement | None = None

    def over(self, config: Config, backend: ProcessBackend | SystemdBackend) -> None:
        """From now on it can be asked."""
        needs = {item.name: Need(gpus=item.gpus) for item in config.instances}
        self._placement = Placement(needs, backend.processes, claim_s=config.pool.start_timeout_s)

    async def place(self, member: str) -> Sequence[str]:
        """UUIDs to start it on. Raises BackendError where a foreign process or a fault is in the way."""
        if self._placement is None:
            raise BackendError(Cause.PLACEMENT, f"{member}: nothing is placed here")
        return await self._placement.place(member)

    def release(self, member: str) -> None:
        """It runs nowhere now: what was claimed for its start is free again."""
        if self._placement is not None:
            self._placement.release(member)

    def close(self) -> None:
        """Leave NVML."""
        if self._placement is not None:
            self._placement.close()


def backend_of(config: Config, placement: Late) -> Backend:
    """What starts and stops them, and puts them to sleep where that is wanted."""
    pool = config.pool
    inner = _starter(config, placement)
    if pool.rest is Rest.STOP:
        return inner
    servers = {item.name: item.url for item in config.instances}
    return SleepBackend(inner, servers, SleepParams(level=pool.sleep_level))


def _starter(config: Config, placement: Late) -> Backend:
    pool, names = config.pool, [item.name for item in config.instances]
    if pool.backend is BackendName.KUBERNETES:
        return _kubernetes(config)  # its scheduler places
    if pool.backend is BackendName.SYSTEMD:
        units = SystemdBackend(names, place=placement.place)
        placement.over(config, units)
        return units
    if "INVOCATION_ID" in os.environ:
        log.warning('pool: backend "process" under systemd: instances share its sandbox and end with it')
    folder = config.daemon.state_dir / "instances"
    launches = {item.name: Launch(item.command or ()) for item in config.instances}
    limits = StopLimits(pool.stop_timeout_s, pool.kill_after_s or None)
    children = ProcessBackend(folder, launches, place=placement.place, limits=limits)
    placement.over(config, children)
    return children


def _kubernetes(config: Config) -> Backend:
    where, workloads = config.pool.kubernetes, []
    for item in config.instances:
        kind, _, name = (item.workload or "").partition("/")
        workloads.append(Workload(kind, where.namespace, name, item.name))
    return KubernetesBackend(workloads, KubeApi(where.kubeconfig, where.context))


def router_of(config: Config) -> Router:
    """What spreads requests over them."""
    pool = config.pool
    if pool.router is RouterName.HAPROXY:
        return HaproxyRouter(
            HaproxySettings(
                sockets=pool.haproxy.sockets,
                masters=pool.haproxy.masters,
                backend=pool.haproxy.backend,
                servers={item.name: item.server or item.name for item in config.instances},
            )
        )
    if pool.router is RouterName.HTTP_SD:
        return HttpSdRouter(pool.http_sd.settle_s, time.monotonic)
    if pool.router is RouterName.HOOKS:
        hooks = pool.hooks
        return HooksRouter(
            HookSettings(
                admit=hooks.admit or (),
                withdraw=hooks.withdraw or (),
                sessions=hooks.sessions or (),
                timeout_s=hooks.timeout_s,
                settle_s=hooks.settle_s,
            )
        )
    return NoRouter()
