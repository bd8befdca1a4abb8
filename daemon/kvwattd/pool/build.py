"""The composition of a pool out of its configuration: backend, router, probe, scaler, planner."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from kvwatt.pool import Member, MemberStatus
from kvwatt.pool_plan import plan
from kvwattd.config import Config, InstanceConfig
from kvwattd.config_pool import Rest
from kvwattd.instance import InstanceRuntime
from kvwattd.instances.haproxy import HaproxyRouter
from kvwattd.instances.http_sd import HttpSdRouter, Listed, listed
from kvwattd.instances.journal import FILE_NAME, Journal
from kvwattd.instances.probe_http import HttpProbe
from kvwattd.instances.router import Router
from kvwattd.instances.scaler import Scaler
from kvwattd.pool.counts import ScaleCounts
from kvwattd.pool.kinds import KindBook
from kvwattd.pool.limits import limits_of
from kvwattd.pool.pace import PacedLearner
from kvwattd.pool.parts import Late, backend_of, router_of
from kvwattd.pool.task import Pool


def build(
    config: Config,
    runs: Mapping[str, InstanceRuntime],
    now: Callable[[], float],
    lowest_mhz: Callable[[InstanceRuntime], int | None],
    acting: bool,
) -> Pool | None:
    """None where no pool is configured."""
    pool = config.pool
    if not pool.enabled:
        return None
    kinds = {item.name: kind_of(item) for item in config.instances}
    probe = HttpProbe({item.name: item.url for item in config.instances})
    planned, scaled = limits_of(config)
    placement = Late()
    backend, router = backend_of(config, placement), router_of(config)

    async def release() -> None:
        """Handles, never instances."""
        for part in (backend, router, probe):
            await part.close()
        placement.close()

    scaler = Scaler(
        kinds,
        backend,
        router,
        probe,
        Journal(config.daemon.state_dir / FILE_NAME),
        scaled,
        now,
        time.time,
        act=acting,
        gpus={item.name: frozenset(item.gpus) for item in config.instances},
    )
    counts = ScaleCounts(kinds)
    book = KindBook(
        runs,
        counts,
        pool.expect,
        config.daemon.state_dir / "capacity",
        can_sleep=pool.rest is not Rest.STOP and backend.can_sleep,
        can_stop=pool.rest is not Rest.SLEEP,
    )
    return Pool(
        runs,
        scaler,
        book,
        lambda: PacedLearner(pool.day_s),
        plan,
        planned,
        counts,
        now,
        lowest_mhz,
        names=(backend.name, router.name),
        targets=_targets(config, router, kinds),
        gone=placement.release,
        release=release,
        weigh=router.weigh if isinstance(router, HaproxyRouter) else None,
    )


def kind_of(item: InstanceConfig) -> str:
    """By its tensor-parallel size where nothing else is said."""
    return item.kind or f"tp{item.tp}"


def _targets(
    config: Config, router: Router, kinds: Mapping[str, str]
) -> Callable[[tuple[Member, ...], bool], tuple[Listed, ...] | None]:
    """What the lists show: what the router admits where it lives on them, else who is ready."""
    urls = {item.name: item.url for item in config.instances}

    def rows(members: tuple[Member, ...], acting: bool) -> tuple[Listed, ...] | None:
        if isinstance(router, HttpSdRouter) and acting:
            names = router.listing()
        elif all(member.status is MemberStatus.UNKNOWN for member in members):
            names = None
        else:
            names = frozenset(m.name for m in members if m.status is MemberStatus.READY)
        return None if names is None else listed(names, kinds, urls)

    return rows
