"""Blocking calls in one thread, in order, each under a deadline; a thread that misses it is abandoned.

A thread stuck in a driver call cannot be stopped, so it is left behind and another takes over its queue. At
most `MAX_ABANDONED` are left behind; then calls are refused until one comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
MAX_ABANDONED = 4


class CallTimeoutError(Exception):
    """The call missed its deadline; `started` tells whether it may still take effect."""

    def __init__(self, name: str, deadline_s: float, started: bool) -> None:
        super().__init__(f"{name} did not answer within {deadline_s:g} s")
        self.started = started


@dataclass(eq=False)
class _Job(Generic[T]):
    function: Callable[[], T]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[T]
    on_late: Callable[[], None] | None
    started: bool = False
    dropped: bool = False  # timed out before it was started: must never run
    abandoned: bool = False
    result: T | None = field(default=None)
    error: BaseException | None = None


class DeadlineWorker:
    """One queue, one live thread. Construct and call from the event loop's thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ready = threading.Condition()
        self._queue: deque[_Job[object]] = deque()
        self._generation = 0  # threads of an older generation end after their call
        self._alive = False
        self._abandoned = 0

    @property
    def hung_calls(self) -> int:
        """Calls that missed their deadline and have not come back."""
        with self._ready:
            return self._abandoned

    async def call(
        self, function: Callable[[], T], deadline_s: float, on_late: Callable[[], None] | None = None
    ) -> T:
        """Run it in the thread. Raises CallTimeoutError; `on_late` runs in the loop if it ends after all."""
        if self.hung_calls >= MAX_ABANDONED:
            raise CallTimeoutError(f"{self._name} ({MAX_ABANDONED} calls hang)", deadline_s, started=False)
        loop = asyncio.get_running_loop()
        job = _Job(function, loop, loop.create_future(), on_late)
        answer: asyncio.Future[T] = job.future
        self._submit(job)
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            if answer.done() and not isinstance(job.error, TimeoutError):
                return answer.result()  # it came in time: late was this loop, which stood still
            raise CallTimeoutError(self._name, deadline_s, started=self._abandon(job)) from None
        except asyncio.CancelledError:
            self._abandon(job)
            raise

    def close(self) -> None:
        """Let the live thread end after its current call; never waits."""
        with self._ready:
            self._generation += 1
            self._alive = False
            self._ready.notify_all()

    def _submit(self, job: _Job[object]) -> None:
        with self._ready:
            self._queue.append(job)
            if not self._alive:
                self._start_thread()
            self._ready.notify()

    def _start_thread(self) -> None:
        self._alive = True
        thread = threading.Thread(target=self._run, args=(self._generation,), name=self._name, daemon=True)
        thread.start()

    def _abandon(self, job: _Job[T]) -> bool:
        """Drop a job that never started, or leave its thread behind. True when it was started."""
        with self._ready:
            if not job.started:
                job.dropped = True
                return False
            if job.error is None and not job.future.done():
                job.abandoned = True
                self._abandoned += 1
                self._generation += 1
                self._start_thread()
            return True

    def _run(self, generation: int) -> None:
        while (job := self._next(generation)) is not None:
            try:
                job.result = job.function()
            except BaseException as error:
                job.error = error
            self._finish(job)

    def _next(self, generation: int) -> _Job[object] | None:
        with self._ready:
            while generation == self._generation:
                while self._queue:
                    job = self._queue.popleft()
                    if not job.dropped:
                        job.started = True
                        return job
                self._ready.wait()
            return None

    def _finish(self, job: _Job[object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            job.loop.call_soon_threadsafe(self._deliver, job)

    def _deliver(self, job: _Job[object]) -> None:
        """In the loop's thread: so abandoning and delivering never race."""
        if job.abandoned:
            with self._ready:
                self._abandoned -= 1
            if job.on_late is not None:
                job.on_late()
        elif job.error is not None:
            _settle(job.future, job.error)
        elif not job.future.done():
            job.future.set_result(job.result)


def _settle(future: asyncio.Future[object], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # a caller that gave up must not cause a "never retrieved" warning
