"""Load for the scaling bench, and what became of every request: answered in full, lost, cut or hung."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

from kvwatt_sim.loadgen import LoadGenerator, LoadOptions, RequestRecord
from kvwatt_sim.traces import TraceRequest

PAUSE_S = 0.05  # of the client that keeps its connection
HANGS_S = 60.0  # no request of this load takes a tenth of it


@dataclass
class Outcome:
    """Counts of requests."""

    sent: int = 0
    good: int = 0
    lost: int = 0  # refused, or never connected
    cut: int = 0  # begun and not ended
    hung: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return self.lost + self.cut + self.hung

    def take(self, record: RequestRecord, now_s: float) -> None:
        self.sent += 1
        if record.done_s is None or record.done_s - record.due_s > HANGS_S:
            self.hung += 1
            self._keep(f"hung: {now_s - record.due_s:.1f} s, {record.tokens} tokens")
        elif record.error is None and record.tokens == record.output_tokens:
            self.good += 1
        elif record.tokens or (record.error or "").startswith("cut"):
            self.cut += 1
            self._keep(record.error or f"{record.tokens} of {record.output_tokens} tokens")
        else:
            self.lost += 1
            self._keep(record.error or "no answer")

    def _keep(self, example: str) -> None:
        if len(self.examples) < 5:
            self.examples.append(example[:200])


class Load:
    """Poisson arrivals through the router until told to end; streams of 5 to 60 tokens.

    `options`: how they are put; None: with the length as a hint, as simulated servers take it.
    """

    def __init__(self, url: str, rate_per_s: float, seed: int, options: LoadOptions | None = None) -> None:
        self._url = url
        self._options = options or LoadOptions(max_tokens=128)
        self._rng = random.Random(seed)
        self._rate_per_s = rate_per_s
        self._generators: list[LoadGenerator] = []
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._keep_alive = KeepAlive(url, self._options.model)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        self._keep_alive.start()

    async def stop(self) -> Outcome:
        """Wait for what is in flight, at most as long as makes a request count as hung."""
        self._ending = True
        assert self._task is not None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._task, HANGS_S)
        outcome = Outcome()
        for generator in self._generators:
            for record in generator.records:
                outcome.take(record, time.monotonic())
        await self._keep_alive.stop(outcome)
        return outcome

    async def _run(self) -> None:
        """Piece by piece, so that it can end; pieces overlap."""
        async with asyncio.TaskGroup() as group:
            while not self._ending:
                start_s = time.monotonic()
                requests = self._piece(2.0)
                options = replace(self._options, seed=len(self._generators))
                generator = LoadGenerator(self._url, requests, options)
                self._generators.append(generator)
                group.create_task(generator.run(start_s))
                await asyncio.sleep(2.0)

    def _piece(self, length_s: float) -> list[TraceRequest]:
        requests, at_s = [], self._rng.expovariate(self._rate_per_s)
        while at_s < length_s:
            requests.append(TraceRequest(at_s, self._rng.randint(5, 200), self._rng.randint(5, 60)))
            at_s += self._rng.expovariate(self._rate_per_s)
        return requests


class KeepAlive:
    """One client that keeps its connection to the router and asks again and again on it."""

    def __init__(self, url: str, model: str) -> None:
        self._body = b'{"model":"%s","prompt":[100,101,102],"max_tokens":3}' % model.encode()
        host, _, port = url.removeprefix("http://").partition(":")
        self._host, self._port = host, int(port)
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._outcome = Outcome()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self, outcome: Outcome) -> None:
        self._ending = True
        assert self._task is not None
        await asyncio.wait([self._task], timeout=HANGS_S)
        self._task.cancel()
        for name in ("sent", "good", "lost", "cut", "hung"):
            setattr(outcome, name, getattr(outcome, name) + getattr(self._outcome, name))
        outcome.examples += self._outcome.examples

    async def _run(self) -> None:
        writer = None
        while not self._ending:
            self._outcome.sent += 1
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                async with asyncio.timeout(HANGS_S):
                    status = await self._ask(reader, writer)
            except TimeoutError:
                self._outcome.hung += 1
                writer = self._drop(writer, "kept connection: hung")
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self._outcome.cut += 1
                writer = self._drop(writer, f"kept connection: {error!r}")
            else:
                self._outcome.good += status == 200
                if status != 200:
                    self._outcome.lost += 1
                    writer = self._drop(writer, f"kept connection: HTTP {status}")
            await asyncio.sleep(PAUSE_S)
        self._drop(writer, "")

    def _drop(self, writer: asyncio.StreamWriter | None, told: str) -> None:
        if told:
            self._outcome._keep(told)
        if writer is not None:
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(self._body), self._body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        await reader.readexactly(length)
        return int(head.split()[1])
