"""The composition of a pool out of its configuration: backend, router, probe, scaler, planner."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from kvwatt.pool import Member, MemberStatus, PoolParams
from kvwatt.pool_plan import plan
from kvwattd.config import Config, InstanceConfig
from kvwattd.config_pool import PoolConfig, Rest
from kvwattd.instance import InstanceRuntime
from kvwattd.instances.http_sd import HttpSdRouter, Listed, listed
from kvwattd.instances.journal import FILE_NAME, Journal
from kvwattd.instances.probe_http import HttpProbe
from kvwattd.instances.router import Router
from kvwattd.instances.scaler import OnDeadline, Scaler, ScalerParams
from kvwattd.pool.counts import ScaleCounts
from kvwattd.pool.kinds import KindBook
from kvwattd.pool.pace import PacedLearner
from kvwattd.pool.parts import Late, backend_of, router_of
from kvwattd.pool.task import Pool

CALL_S = 30.0  # of a call, on top of what a router lets pass until a withdrawal is certain


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
        scaler_params(pool),
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
    params = pool_params(pool, len(kinds))
    return Pool(
        runs,
        scaler,
        book,
        lambda: PacedLearner(pool.day_s),
        plan,
        params,
        counts,
        now,
        lowest_mhz,
        names=(backend.name, router.name),
        targets=_targets(config, router, kinds),
        gone=placement.release,
        release=release,
    )


def kind_of(item: InstanceConfig) -> str:
    """By its tensor-parallel size where nothing else is said."""
    return item.kind or f"tp{item.tp}"


def pool_params(pool: PoolConfig, members: int) -> PoolParams:
    """What the planner is told."""
    return PoolParams(
        minimum=pool.minimum,
        maximum=pool.maximum or members,
        period_s=pool.period_s,
        cooldown_s=pool.cooldown_s,
        less_for_s=pool.less_for_s,
        start_timeout_s=pool.start_timeout_s,
        retry_s=pool.retry_s,
        survivors_load_max=pool.survivors_load_max,
        forecast_quantile=pool.forecast_quantile,
        drain_s=pool.expect.drain_s,
        stay_s=pool.stay_s,
    )


def scaler_params(pool: PoolConfig) -> ScalerParams:
    """What the scaler is told."""
    return ScalerParams(
        minimum=pool.minimum,
        # The planner cancels first and takes another way; this is for when it cannot.
        start_timeout_s=pool.start_timeout_s + 2 * pool.period_s,
        drain_timeout_s=pool.drain_deadline_s,
        on_deadline=OnDeadline(pool.drain_then),
        end_timeout_s=pool.stop_timeout_s,
        retry_s=pool.retry_s,
        warm_up=pool.warm_up,
        call_timeout_s=CALL_S + max(pool.http_sd.settle_s, pool.hooks.timeout_s + pool.hooks.settle_s),
    )


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
