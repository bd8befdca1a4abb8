"""Asks backend and router of the pool. Orders nothing of anybody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from kvwattd.config import Config
from kvwattd.config_pool import BackendName, RouterName
from kvwattd.doctor.facts import PoolFact

DEADLINE_S = 5.0
# Lists and commands do not tell who is admitted; only HAProxy can be asked.
_TELLING = frozenset({RouterName.HAPROXY})


async def look_at_pool(config: Config) -> PoolFact:
    """Every failure is a fact."""
    if not config.pool.enabled:
        return PoolFact()
    try:
        states = await asyncio.wait_for(_states(config), DEADLINE_S)
        admitted, router_error = await asyncio.wait_for(_admitted(config), DEADLINE_S)
    except (TimeoutError, ValueError, OSError) as error:
        return PoolFact(error=str(error) or f"no answer within {DEADLINE_S:g} s")
    return PoolFact(states, admitted, router_error, under_systemd="INVOCATION_ID" in os.environ)


async def _states(config: Config) -> Mapping[str, tuple[str, str]]:
    """Not of the process backend: to look at its records is to move its stops on."""
    from kvwattd.pool.parts import Late, backend_of

    if config.pool.backend is BackendName.PROCESS:
        return {}
    backend = backend_of(config, Late())
    try:
        states = await backend.states()
        reasons: Mapping[str, str] = getattr(backend, "reasons", {})
        return {name: (str(state), reasons.get(name, "")) for name, state in states.items()}
    finally:
        await backend.close()


async def _admitted(config: Config) -> tuple[frozenset[str] | None, str]:
    from kvwattd.instances.router import RouterError
    from kvwattd.pool.parts import router_of

    if config.pool.router not in _TELLING:
        return None, ""
    router = router_of(config)
    try:
        for item in config.instances:
            await router.sessions(item.name)
        return await router.admitted(), ""
    except RouterError as error:
        return None, str(error)
    finally:
        await router.close()
