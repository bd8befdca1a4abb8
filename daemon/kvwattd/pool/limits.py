"""What planner and scaler are told of [pool]."""

from __future__ import annotations

from kvwatt.pool import PoolParams
from kvwattd.config import Config
from kvwattd.config_pool import PoolConfig, RouterName
from kvwattd.instances.scaler_params import OnDeadline, ScalerParams

CALL_S = 30.0  # of a call, on top of what a router lets pass until a withdrawal is certain


def limits_of(config: Config) -> tuple[PoolParams, ScalerParams]:
    """Both, of one configuration."""
    return pool_params(config.pool, len(config.instances)), scaler_params(config.pool)


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
        load_max=pool.load_max,
        survivors_load_max=pool.survivors_load_max,
        forecast_quantile=pool.forecast_quantile,
        drain_s=pool.expect.drain_s,
        stay_s=pool.stay_s,
        mixed=pool.router is RouterName.HAPROXY,  # the one that is told weights
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
