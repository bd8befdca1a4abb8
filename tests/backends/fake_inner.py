"""A backend of nothing: states as a test sets them, and a record of what was asked."""

from __future__ import annotations

from collections.abc import Mapping

from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn


class FakeInner:
    """Starts and stops at once."""

    name = "fake"
    can_sleep = False

    def __init__(self, *members: str) -> None:
        self.found = dict.fromkeys(members, BackendState.RUNNING)
        self.asked: list[tuple[str, str]] = []
        self.fail_stop = False

    async def states(self) -> Mapping[str, BackendState]:
        return dict(self.found)

    async def start(self, member: str) -> None:
        self.asked.append(("start", member))
        self.found[member] = BackendState.RUNNING

    async def stop(self, member: str) -> None:
        if self.fail_stop:
            raise BackendError(Cause.FORBIDDEN, member)
        self.asked.append(("stop", member))
        self.found[member] = BackendState.STOPPED

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        raise BackendError(Cause.UNSUPPORTED, member)

    async def wake(self, member: str) -> None:
        raise BackendError(Cause.UNSUPPORTED, member)

    async def close(self) -> None:
        self.asked.append(("close", ""))
