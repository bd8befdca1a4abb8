"""The interface of everything that spreads requests over vLLM instances, as far as scaling needs it.

A request that is sent to a sleeping vLLM hangs for ever. So the one thing asked of a router is certainty:
`withdraw` returns only when no new request can reach the member any more, and whatever a router cannot tell
is None, never "no" and never zero.
"""

from __future__ import annotations

from typing import Protocol


class RouterError(Exception):
    """A call of a router that did not come through; whether it was carried out is not known.

    Args:
        cause: one word for metrics: `unreachable`, `deadline`, `refused`, `unknown-member`, `unconfirmed`,
            `forbidden` or `malformed`.
        detail: a sentence for the log: what was asked, of whom, and what it said.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


class Router(Protocol):
    """One router, or several that are always told the same.

    Every call has a deadline of its own, is idempotent, and may be repeated after a crash. `RouterError` is
    the only exception.
    """

    @property
    def name(self) -> str:
        """`haproxy`, `http-sd`, `hooks` or `none`."""

    @property
    def counts_sessions(self) -> bool:
        """Whether `sessions` is part of a drain; False: the engine's own counts must do."""

    async def admit(self, member: str) -> None:
        """Take into service. Only the scaler calls it, after the engine said that it is up and awake."""

    async def withdraw(self, member: str) -> None:
        """No new requests from now on; returns when the router has confirmed it. What runs goes on."""

    async def sessions(self, member: str) -> int | None:
        """Requests that the router still has at the member or queued for it. None: it cannot tell."""

    async def admitted(self) -> frozenset[str] | None:
        """Members that new requests may reach. None: it cannot tell (then nothing is taken for out)."""

    async def close(self) -> None:
        """Free our handles. What is in service stays in service."""


class NoRouter:
    """For instances whose router is told by nobody: every withdrawal is refused, so nothing is ever drained.

    Admission has no effect and what is in service cannot be told.
    """

    name = "none"
    counts_sessions = False

    async def admit(self, member: str) -> None:
        """Nothing to do."""

    async def withdraw(self, member: str) -> None:
        """Raises RouterError: without a router nobody can say that requests have ended."""
        raise RouterError("refused", f"{member} cannot be drained: no router is configured")

    async def sessions(self, member: str) -> int | None:
        """None."""
        return None

    async def admitted(self) -> frozenset[str] | None:
        """None."""
        return None

    async def close(self) -> None:
        """Nothing to do."""
