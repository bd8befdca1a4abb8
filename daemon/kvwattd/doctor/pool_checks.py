"""Checks of the pool: can it start, stop, drain and see what it is to decide about. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kvwattd.config import Config
from kvwattd.config_pool import BackendName, Rest, RouterName
from kvwattd.doctor.facts import Facts, Finding, Level

CHECK = "pool"


def check_pool(facts: Facts) -> Iterator[Finding]:
    config = facts.config
    if config is None or not config.pool.enabled:
        return
    pool = config.pool
    members = len(config.instances)
    found = f"{members} instances, {pool.minimum} to {pool.maximum or members}, by {pool.backend}"
    yield Finding(CHECK, Level.OK, f"{found}, router {pool.router}")
    yield from _check_states(facts)
    yield from _check_router(facts, config)
    yield from _check_backend(facts, config)
    if pool.minimum == members:
        yield Finding(CHECK, Level.NOTE, "pool.minimum is all of them: none is ever taken away", "lower it")


def _check_states(facts: Facts) -> Iterator[Finding]:
    """What the backend says of each; a server that does not answer may just be stopped."""
    for name, (state, reason) in facts.pool.states.items():
        if state in ("failed", "unknown"):
            advice = "see its log; kvwatt leaves a failed one alone for pool.retry_s"
            yield Finding(CHECK, Level.WARNING, f"{name} is {state}: {reason or 'no reason told'}", advice)
    if facts.pool.states:
        told = ", ".join(f"{name} {state}" for name, (state, _) in facts.pool.states.items())
        yield Finding(CHECK, Level.OK, f"the backend tells: {told}")
    if facts.pool.error:
        yield Finding(CHECK, Level.PROBLEM, facts.pool.error, "correct [pool], or the surroundings it names")


def _check_router(facts: Facts, config: Config) -> Iterator[Finding]:
    if config.pool.router is RouterName.NONE:
        found = "router none: instances are started, but none is ever taken away"
        yield Finding(CHECK, Level.WARNING, found, "set pool.router, so that they can be drained")
    elif facts.pool.router_error:
        advice = (
            "see that it runs and that the daemon's user may use its socket (stats socket ... level admin)"
        )
        yield Finding(CHECK, Level.PROBLEM, f"{config.pool.router}: {facts.pool.router_error}", advice)
    elif facts.pool.admitted is not None:
        names = ", ".join(sorted(facts.pool.admitted)) or "nobody"
        yield Finding(CHECK, Level.OK, f"{config.pool.router} sends requests to {names}")


def _check_backend(facts: Facts, config: Config) -> Iterator[Finding]:
    pool = config.pool
    if pool.backend is BackendName.PROCESS and facts.pool.under_systemd:
        found = "backend process under systemd: instances would share kvwatt.service's sandbox and its end"
        yield Finding(CHECK, Level.PROBLEM, found, 'use pool.backend = "systemd" (vllm@NAME.service)')
    if pool.rest is not Rest.STOP:
        found = "sleep: each server needs VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode"
        yield Finding(CHECK, Level.NOTE, found, "only the router may send to it: a sleeping vLLM hangs")
