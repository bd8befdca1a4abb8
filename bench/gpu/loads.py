"""Loads whose steps are measured: a vLLM server's, or a small PyTorch decoder's where there is no server."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import httpx
import pynvml

from kvwatt.profiles import ProfileRow
from kvwattd.guard.nvml_session import Handle, NvmlSession, energy_mj
from kvwattd.profiler.rows import decode_row
from kvwattd.profiler.streams import Batch, Target, complete
from kvwattd.profiler.windows import Meter, nominal_clock_mhz
from kvwattd.telemetry.gpu import GpuReader
from kvwattd.telemetry.poller import Poller, new_client

DEADLINE_S = 5.0
TOKENS_PER_SECOND_AT_MOST = 1000  # of one sequence: long enough answers to last a window


class NoLoad(Exception):  # noqa: N818 - what is the matter, not a mistake
    """This load cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What served. None where it is not known."""

    model: str
    software: str
    block_size: int | None = None
    num_blocks: int | None = None
    max_model_len: int | None = None
    weights_bytes: int | None = None
    kv_bytes_per_token: int | None = None


class Load(Protocol):
    """Measured at whatever clock the GPU runs. `target_mhz`: what it was told, None at driver default."""

    shape: Shape

    async def decode(
        self, batch: int, context_tokens: int, seconds: float, target_mhz: int | None
    ) -> ProfileRow:
        """A steady batch. Raises what the load raises when it fails."""
        ...

    async def prefill(self, tokens: int, seconds: float, target_mhz: int | None) -> ProfileRow:
        """Prompts one after another."""
        ...

    async def close(self) -> None: ...


class ServerLoad:
    """Requests of our own to a vLLM server that serves nobody else."""

    def __init__(self, target: Target, poller: Poller, reader: GpuReader, shape: Shape) -> None:
        self.shape = shape
        self._target = target
        self._poller, self._reader = poller, reader
        self._meter = Meter(poller, reader)
        self._random = random.Random(time.time_ns())  # prompts of an earlier run may still be cached

    @classmethod
    async def open(cls, url: str, gpus: tuple[str, ...], last_token_id: int) -> ServerLoad:
        """Raises NoLoad, TelemetryError, GpuUnavailable."""
        client = new_client()
        poller = Poller(url, DEADLINE_S, client=client)
        reader = GpuReader(gpus, DEADLINE_S)
        await reader.start()
        snapshot = await poller.poll(time.monotonic)
        if snapshot.running + snapshot.waiting > 0:
            raise NoLoad(f"{url} serves others: measure on a server without other traffic")
        try:
            answer = await client.get(f"{url.rstrip('/')}/v1/models", timeout=DEADLINE_S)
            served = answer.raise_for_status().json()["data"][0]
            name, longest = str(served["id"]), int(served.get("max_model_len") or 0)
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise NoLoad(f"{url}/v1/models does not tell the served model: {error!r:.200}") from error
        version = await poller.version() or "unknown"
        shape = Shape(name, f"vLLM {version}", snapshot.block_size, snapshot.num_blocks, longest or None)
        return cls(Target(url, name, last_token_id), poller, reader, shape)

    async def decode(
        self, batch: int, context_tokens: int, seconds: float, target_mhz: int | None
    ) -> ProfileRow:
        longest = self.shape.max_model_len or 2**31
        answer = min(int(TOKENS_PER_SECOND_AT_MOST * (seconds + 2.0)), longest - context_tokens - 1)
        if answer < 1:
            raise NoLoad(f"context {context_tokens}: the model takes {longest} tokens")
        seed = self._random.getrandbits(32)
        async with Batch(self._target, batch, context_tokens, answer, seed) as running:
            await running.started()
            window = await self._meter.window(seconds)
            running.check()
        return decode_row(window, target_mhz or round(window.clock_mhz), batch, tp=1, live=True)

    async def prefill(self, tokens: int, seconds: float, target_mhz: int | None) -> ProfileRow:
        longest = self.shape.max_model_len or 2**31
        if tokens + 1 > longest:
            raise NoLoad(f"prompt of {tokens}: the model takes {longest} tokens")
        window = asyncio.create_task(self._meter.window(seconds))
        took_s = []
        while not window.done():
            took_s.append(await complete(self._target, tokens, 1, self._random))
        seen = await window
        clock = nominal_clock_mhz(target_mhz or seen.clock_mhz, seen.clock_mhz)
        step_s = sum(took_s) / len(took_s)
        return ProfileRow(clock, 0, 0, tokens, step_s, seen.power_w, kind="prefill")

    async def close(self) -> None:
        self._reader.close()
        await self._poller.close()


class TorchLoad:
    """A decoder of this kit's own: steps in a thread, energy by the counter between two of its refreshes."""

    def __init__(self, gpu: str, device: str, hidden: int, layers: int) -> None:
        try:
            from decoder import Decoder  # only here: torch is no dependency of kvwatt
        except ImportError as error:
            raise NoLoad(f"no PyTorch in this environment ({error})") from None
        self._decoder = Decoder(device, hidden, layers)
        self._session = NvmlSession()
        self._uuid = gpu
        self.shape = Shape(
            model=self._decoder.name,
            software=self._decoder.software,
            weights_bytes=self._decoder.weights_bytes,
            kv_bytes_per_token=self._decoder.kv_bytes_per_token,
        )

    async def decode(
        self, batch: int, context_tokens: int, seconds: float, target_mhz: int | None
    ) -> ProfileRow:
        make = partial(self._decoder.decoding, batch, context_tokens)
        step_s, power_w, clock = await asyncio.to_thread(self._measured, make, seconds)
        clock = nominal_clock_mhz(target_mhz or clock, clock)
        return ProfileRow(clock, batch, batch * context_tokens, 0, step_s, power_w)

    async def prefill(self, tokens: int, seconds: float, target_mhz: int | None) -> ProfileRow:
        make = partial(self._decoder.prefilling, tokens)
        step_s, power_w, clock = await asyncio.to_thread(self._measured, make, seconds)
        clock = nominal_clock_mhz(target_mhz or clock, clock)
        return ProfileRow(clock, 0, 0, tokens, step_s, power_w, kind="prefill")

    async def close(self) -> None:
        return

    def _measured(self, make: Callable[[], Callable[[], None]], seconds: float) -> tuple[float, float, float]:
        """Seconds a step, watts, MHz. Raises NoLoad where it does not fit into the memory."""
        try:
            step = make()
            for _ in range(3):
                step()  # allocates, and raises the clock
        except self._decoder.out_of_memory as error:
            raise NoLoad(f"does not fit into the GPU's memory: {str(error)[:80]}") from None
        begin_s, begin_mj = self._edge(step)
        steps, clocks = 0, []
        from_s = time.monotonic()
        while time.monotonic() - from_s < seconds:
            step()
            steps += 1
            if steps % 8 == 0:
                clocks.append(self._clock_mhz())
        step_s = (time.monotonic() - from_s) / steps
        end_s, end_mj = self._edge(step)
        power_w = (end_mj - begin_mj) / 1e3 / (end_s - begin_s) if end_mj >= begin_mj else math.nan
        clocks.append(self._clock_mhz())
        return step_s, power_w, sum(clocks) / len(clocks)

    def _edge(self, step: Callable[[], None]) -> tuple[float, int]:
        """A moment at which the counter has just moved, the load going on meanwhile."""
        base = self._counter_mj()
        until_s = time.monotonic() + 0.25
        while time.monotonic() < until_s:
            step()
            counter = self._counter_mj()
            if counter != base:
                return time.monotonic(), counter
        return time.monotonic(), self._counter_mj()

    def _counter_mj(self) -> int:
        counter = self._session.run(self._uuid, "reading its energy", energy_mj)
        if counter is None:
            raise NoLoad("this GPU has no energy counter (before Volta)")
        return counter

    def _clock_mhz(self) -> int:
        return self._session.run(self._uuid, "reading its clock", sm_clock_mhz)


def sm_clock_mhz(handle: Handle) -> int:
    """Raises pynvml.NVMLError."""
    return int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
