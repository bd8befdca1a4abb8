"""Short requests without end, sent from a thread of their own whatever becomes of the server."""

from __future__ import annotations

import asyncio
import threading
import time
from types import TracebackType
from typing import Self

from kvwatt_sim.loadgen import LoadGenerator, LoadOptions
from kvwatt_sim.traces import TraceRequest

RATE_PER_S = 5.0
PROMPT_TOKENS, OUTPUT_TOKENS = 96, 24
LONGEST_S = 900.0


class Load:
    """`with Load(url)`: the server is busy inside the block."""

    def __init__(self, base_url: str, model: str = "sim") -> None:
        count = int(LONGEST_S * RATE_PER_S)
        requests = [TraceRequest(i / RATE_PER_S, PROMPT_TOKENS, OUTPUT_TOKENS) for i in range(count)]
        self._generator = LoadGenerator(base_url, requests, LoadOptions(model=model))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._stop = threading.Event()

    @property
    def answered(self) -> int:
        """Requests that ended with a whole answer so far."""
        return sum(r.done_s is not None and r.error is None for r in list(self._generator.records))

    async def _run(self) -> None:
        sending = asyncio.create_task(self._generator.run(time.monotonic()))
        await asyncio.to_thread(self._stop.wait)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
