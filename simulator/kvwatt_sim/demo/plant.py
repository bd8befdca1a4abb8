"""The two plants: each a simulated GPU in a state file of its own and a simulated server on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from kvwatt_sim import cards
from kvwatt_sim.demo.settings import CARD, DemoError
from kvwatt_sim.nvml.build import BuildError, NvmlLibs, build
from kvwatt_sim.nvml.control import SimGpus, env_for
from kvwatt_sim.nvml.said import Reading
from kvwatt_sim.nvml.spec import demo_uuid
from kvwatt_sim.server.launch import ServerStartError, SimServer

GPU = 0
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 2048
SCRAPE_TIMEOUT_S = 2.0
_GAUGE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^}]*\})? (\S+)",
    re.MULTILINE,
)
_CLOCK_SETTERS = ("nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks")


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """What the server's metrics page says about its batch."""

    running: int
    waiting: int
    kv_usage: float


@dataclass
class Plant:
    """One GPU and its server."""

    name: str
    uuid: str
    gpus: SimGpus
    server: SimServer
    env: dict[str, str]
    _last_set_s: float = field(default=0.0)
    _clock_changes: int = 0

    def read(self) -> Reading:
        """The simulated GPU now."""
        return self.gpus.read(GPU)

    def counter_j(self) -> float:
        """The GPU's own energy counter, as NVML shows it."""
        return self.read().visible_j

    def clock_changes(self) -> int:
        """Locks and resets that the GPU accepted since the first call; call at least every minute."""
        for call in self.gpus.setter_log():  # the log holds the last 1,024
            if call.t_s <= self._last_set_s:
                continue
            self._last_set_s = call.t_s
            self._clock_changes += call.result == "SUCCESS" and call.call.startswith(_CLOCK_SETTERS)
        return self._clock_changes

    async def gauges(self, client: httpx.AsyncClient) -> EngineGauges | None:
        """One scrape; None when the server did not answer in time."""
        try:
            page = await client.get(f"{self.server.base_url}/metrics", timeout=SCRAPE_TIMEOUT_S)
        except httpx.HTTPError:
            return None
        found = {name.decode(): float(value) for name, value in _GAUGE.findall(page.content)}
        if len(found) < 3:
            return None
        return EngineGauges(
            running=int(found["num_requests_running"]),
            waiting=int(found["num_requests_waiting"]),
            kv_usage=found["kv_cache_usage_perc"],
        )

    def dropped_s(self) -> float:
        """Time by which the host failed to keep up with this server's steps."""
        answer = httpx.get(f"{self.server.base_url}/_sim/status", timeout=SCRAPE_TIMEOUT_S)
        return float(answer.raise_for_status().json()["dropped_s"])


def libraries() -> NvmlLibs:
    """The simulated NVML, compiled when it is not in the cache. Raises DemoError."""
    try:
        return build()
    except BuildError as error:
        raise DemoError(str(error)) from error


def start_plants(stack: ExitStack, libs: NvmlLibs, folder: Path, names: Sequence[str]) -> tuple[Plant, ...]:
    """Make the GPUs and start the servers side by side; `stack` stops them. Raises DemoError."""
    card = cards.load(CARD)
    plants = []
    for index, name in enumerate(names):
        state, uuid = folder / f"{name}.gpu", demo_uuid(index)
        gpus = stack.enter_context(SimGpus.create(state, [card.gpu_spec(uuid)], libs=libs))
        server = SimServer(
            CARD,
            state=state,
            gpus=(GPU,),
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        )
        plants.append(Plant(name, uuid, gpus, server, env_for(libs, state)))
    _start_together(stack, plants)
    return tuple(plants)


def _start_together(stack: ExitStack, plants: Sequence[Plant]) -> None:
    pool = ThreadPoolExecutor(len(plants))
    starting = {plant.server: pool.submit(plant.server.start) for plant in plants}
    pool.shutdown(wait=False)
    # Registered before the wait: a Ctrl-C that ends it still stops what comes up.
    stack.callback(_stop_started, starting)
    for start in starting.values():
        try:
            start.result()
        except ServerStartError as error:
            raise DemoError(f"a simulated server did not come up: {error}") from error


def _stop_started(starting: dict[SimServer, Future[SimServer]]) -> None:
    for server, start in starting.items():
        if start.exception() is None:  # waits for the start to end
            server.__exit__(None, None, None)
