"""A process that can open nothing more: whose fault it is, and that nobody can connect, told once a minute.

asyncio tries to accept as often as its backlog is long, every second, and logs each failure with a traceback
(CPython, asyncio/selector_events.py): a daemon out of descriptors that is scraped would write megabytes a
second into the journal.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from typing import Any, TypeGuard

QUIET_S = 60.0
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
log = logging.getLogger(__name__)


def is_shortage(error: object) -> TypeGuard[OSError]:
    """Whether it is this process that lacks descriptors or memory, whoever it wanted to reach."""
    return isinstance(error, OSError) and error.errno in SHORTAGES


class Shortages:
    """An event loop's exception handler; whatever is no shortage goes to the loop's own."""

    def __init__(self) -> None:
        self._told_s = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "socket" not in context or not is_shortage(error):
            loop.default_exception_handler(context)
        elif loop.time() - self._told_s >= QUIET_S:
            self._told_s = loop.time()
            log.error("nobody new can connect: %s; tried every second, told once a minute", error)


def tell_shortages_once() -> None:
    """On the running loop."""
    asyncio.get_running_loop().set_exception_handler(Shortages())
