"""Values that are valid alone but do not fit together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvwatt.state import Slo
from kvwattd.config_checks_pool import pool_problems
from kvwattd.config_errors import ConfigProblem
from kvwattd.config_pool import Rest
from kvwattd.config_values import is_loopback

if TYPE_CHECKING:
    from kvwattd.config import Config


def cross_problems(config: Config) -> Iterable[ConfigProblem]:
    """Every contradiction in a configuration."""
    yield from _daemon_problems(config)
    yield from _api_problems(config)
    yield from _instance_problems(config)
    yield from _ownership_problems(config)
    yield from pool_problems(config)


def _api_problems(config: Config) -> Iterable[ConfigProblem]:
    api = config.api
    if (api.tls_cert is None) != (api.tls_key is None):
        missing = "api.tls_cert" if api.tls_cert is None else "api.tls_key"
        yield ConfigProblem(missing, "nothing", "certificate and key go together: set both or neither")
    if not api.tcp and api.socket is None:
        yield ConfigProblem("api.tcp", api.tcp, "true, or api.socket with the path of a unix socket")
    safe = api.tls_cert is not None and api.token_file is not None
    if api.tcp and not is_loopback(api.host) and not safe and not api.insecure_remote:
        accepted = (
            "a loopback address; or api.tls_cert, api.tls_key and api.token_file beside it; "
            "or api.insecure_remote = true where something else protects it"
        )
        yield ConfigProblem("api.host", api.host, accepted)


def _daemon_problems(config: Config) -> Iterable[ConfigProblem]:
    tick_s, lease_s, policy = config.daemon.tick_s, config.guard.lease_s, config.policy
    if lease_s <= tick_s:
        yield ConfigProblem("guard.lease_s", lease_s, f"more than daemon.tick_s ({tick_s} s)")
    if policy.floor_mhz and policy.ceiling_mhz and policy.floor_mhz > policy.ceiling_mhz:
        accepted = f"at most policy.ceiling_mhz ({policy.ceiling_mhz} MHz)"
        yield ConfigProblem("policy.floor_mhz", policy.floor_mhz, accepted)


def _instance_problems(config: Config) -> Iterable[ConfigProblem]:
    for index, item in enumerate(config.instance):
        key = f"instance[{index}]"
        if item.stale_after_s <= item.poll_s:
            accepted = f"more than {key}.poll_s ({item.poll_s} s)"
            yield ConfigProblem(f"{key}.stale_after_s", item.stale_after_s, accepted)
        if item.scrape_deadline_s >= item.stale_after_s:
            accepted = f"less than {key}.stale_after_s ({item.stale_after_s} s)"
            yield ConfigProblem(f"{key}.scrape_deadline_s", item.scrape_deadline_s, accepted)
        if len(item.gpus) % item.tp:
            accepted = f"a divisor of the number of GPUs in {key}.gpus ({len(item.gpus)})"
            yield ConfigProblem(f"{key}.tp", item.tp, accepted)
        if config.slo_of(item) == Slo():
            accepted = (
                "at least one promise: [slo.ttft], [slo.tbt] or [slo.e2e] with limit_s, here or for all"
            )
            yield ConfigProblem(f"{key}.slo", "nothing", accepted)


def _ownership_problems(config: Config) -> Iterable[ConfigProblem]:
    names: dict[str, int] = {}
    owners: dict[str, str] = {}
    # Of a pool that stops what it does not need, engines of several shapes take turns on the same GPUs.
    shared = config.pool.enabled and config.pool.rest is Rest.STOP
    for index, item in enumerate(config.instance):
        if item.name in names:
            accepted = f"a name of its own (instance[{names[item.name]}] has it already)"
            yield ConfigProblem(f"instance[{index}].name", item.name, accepted)
        names.setdefault(item.name, index)
        for gpu in item.gpus:
            if gpu in owners and not shared:
                accepted = f"a GPU that no other entry owns (owned by instance {owners[gpu]!r})"
                yield ConfigProblem(f"instance[{index}].gpus", gpu, accepted)
            owners.setdefault(gpu, item.name)
