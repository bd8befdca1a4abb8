"""What contradicts itself in [pool], or lacks something that its backend or router needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvwattd.config_errors import ConfigProblem
from kvwattd.config_pool import BackendName, Rest, RouterName

if TYPE_CHECKING:
    from kvwattd.config import Config

LEAST_WINDOWS = 864  # of a day: with fewer, coarser ones the forecast cannot follow it


def pool_problems(config: Config) -> Iterable[ConfigProblem]:
    """Every contradiction of an enabled pool."""
    if not config.pool.enabled:
        return
    yield from _number_problems(config)
    yield from _backend_problems(config)
    yield from _router_problems(config)
    yield from _member_problems(config)


def _number_problems(config: Config) -> Iterable[ConfigProblem]:
    pool, members = config.pool, len(config.instance)
    if pool.maximum is not None and pool.maximum > members:
        yield ConfigProblem("pool.maximum", pool.maximum, f"at most the number of [[instance]] ({members})")
    if pool.survivors_load_max > pool.load_max:
        accepted = f"at most pool.load_max ({pool.load_max:g}): who left would be wanted back at once"
        yield ConfigProblem("pool.survivors_load_max", pool.survivors_load_max, accepted)
    if pool.day_s < LEAST_WINDOWS * pool.period_s:
        accepted = f"at least {LEAST_WINDOWS} times pool.period_s ({LEAST_WINDOWS * pool.period_s:g} s)"
        yield ConfigProblem("pool.day_s", pool.day_s, accepted)
    most = min(pool.maximum or members, members)
    if pool.minimum > most:
        key = "pool.maximum" if pool.maximum else "the number of [[instance]]"
        yield ConfigProblem("pool.minimum", pool.minimum, f"at most {key} ({most})")


def _backend_problems(config: Config) -> Iterable[ConfigProblem]:
    pool = config.pool
    if pool.backend is BackendName.KUBERNETES:
        yield from _kubernetes_problems(config)
    for index, item in enumerate(config.instance):
        if pool.backend is BackendName.PROCESS and item.command is None:
            accepted = 'program and arguments that start it, such as ["vllm", "serve", "MODEL"]'
            yield ConfigProblem(f"instance[{index}].command", "nothing", accepted)


def _kubernetes_problems(config: Config) -> Iterable[ConfigProblem]:
    """Which of several replicas goes is Kubernetes' choice, whichever was drained: one object each."""
    if config.pool.rest is not Rest.STOP:
        yield ConfigProblem("pool.rest", str(config.pool.rest), '"stop": the backend kubernetes scales')
    owners: dict[str, str] = {}
    for index, item in enumerate(config.instance):
        if item.workload is None:
            accepted = "its object, such as StatefulSet/vllm-chat1"
            yield ConfigProblem(f"instance[{index}].workload", "nothing", accepted)
        elif owners.setdefault(item.workload, item.name) != item.name:
            accepted = f"an object of its own (this one belongs to instance {owners[item.workload]!r})"
            yield ConfigProblem(f"instance[{index}].workload", item.workload, accepted)


def _router_problems(config: Config) -> Iterable[ConfigProblem]:
    pool = config.pool
    if pool.router is RouterName.HAPROXY and not (pool.haproxy.sockets or pool.haproxy.masters):
        yield ConfigProblem(
            "pool.haproxy.sockets", "nothing", "HAProxy's runtime sockets (stats socket ... level admin)"
        )
    if pool.router is RouterName.HOOKS:
        for name in ("admit", "withdraw"):
            command = getattr(pool.hooks, name)
            if command is None or not any("{member}" in word for word in command):
                accepted = "a command, program and arguments, with {member} for the instance's name"
                yield ConfigProblem(f"pool.hooks.{name}", command or "nothing", accepted)


def _member_problems(config: Config) -> Iterable[ConfigProblem]:
    urls: dict[str, str] = {}
    for index, item in enumerate(config.instance):
        if item.url in urls:
            accepted = f"a server of its own with pool.enabled (instance {urls[item.url]!r} has this one)"
            yield ConfigProblem(f"instance[{index}].url", item.url, accepted)
        urls.setdefault(item.url, item.name)
    groups: dict[str, tuple[int, str]] = {}
    for index, item in enumerate(config.instance):
        size, first = groups.setdefault(item.kind or f"tp{item.tp}", (len(item.gpus), item.name))
        if len(item.gpus) != size:
            accepted = f"a kind of its own, or {size} GPUs as instance {first!r} of the same kind"
            yield ConfigProblem(f"instance[{index}].kind", item.kind or f"tp{item.tp}", accepted)
