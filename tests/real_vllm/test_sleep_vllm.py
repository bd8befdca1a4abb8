"""Sleep mode of real vLLM through the backend: both levels, requests that slip in, a kvwatt that dies.

vLLM computes on the CPU here, where sleep holds requests back as on a GPU and frees no memory.
The weights are real ones (random), so that they can be loaded again.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from plant_model import free_port
from vllm_server import VllmServer, make_model, vllm_python

from kvwattd.instances.backend import Backend, BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.process import Launch, ProcessBackend
from kvwattd.instances.vllm_sleep import SleepBackend, SleepParams

pytestmark = pytest.mark.vllm_pool

UP_LIMIT_S = 200.0
CALL_S = 60.0
RUNNING = b"vllm:num_requests_running{"
GENERATED = b"vllm:generation_tokens_total{"
WEIGHTS = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1])).save_pretrained(sys.argv[1])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Launch, str]]:
    """Where it runs, how it is run, and its address."""
    folder = tmp_path_factory.mktemp("sleep")
    python = vllm_python()
    port = free_port()
    model = make_model(python, folder / "model")
    subprocess.run([str(python), "-c", WEIGHTS, str(model)], check=True)
    server = VllmServer(
        python,
        model,
        folder / "no-gpus",
        port,
        folder / "log",
        worker=None,
        environment={"VLLM_SERVER_DEV_MODE": "1"},
        options={"--load-format": "auto", "--max-model-len": 4096},
    )
    yield folder, Launch(tuple(server._command()), environment=server._environment()), server.url


def sleeping(place: tuple[Path, Launch, str], level: int) -> SleepBackend:
    folder, launch, url = place
    inner: Backend = ProcessBackend(folder / "instances", {"a": launch}, deadline_s=20.0)
    return SleepBackend(
        inner, {"a": url}, SleepParams(level=level, look_s=10.0, sleep_s=CALL_S, wake_s=CALL_S)
    )


async def until(backend: SleepBackend, *wanted: BackendState, limit_s: float = CALL_S) -> BackendState:
    until_s = time.monotonic() + limit_s
    while (state := (await backend.states())["a"]) not in wanted:
        assert time.monotonic() < until_s, (state, backend.reasons)
        await asyncio.sleep(0.2)
    return state


async def ask(http: httpx.AsyncClient, tokens: int = 4) -> int:
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True}
    return (await http.post("/v1/completions", json=body)).status_code


def proof() -> Withdrawn:
    return Withdrawn("a", "test", time.monotonic())


async def test_sleep_mode(place: tuple[Path, Launch, str]) -> None:
    """One server from its start to its stop: nothing it is asked hangs, whatever befalls it on the way."""
    backend = sleeping(place, 1)
    async with httpx.AsyncClient(base_url=place[2], timeout=CALL_S) as http:
        await backend.start("a")
        await _serves(backend, http)
        for level in (1, 2):
            one = sleeping(place, level)
            await _there_and_back(one, http)
            await _a_request_slips_in(one, http)
            await one.close()
        await _busy(backend, http)
        await _killed_half_way(place, http)
        await backend.stop("a")
        await until(backend, BackendState.STOPPED)
    await backend.close()


async def _serves(backend: SleepBackend, http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(UP_LIMIT_S):
        while True:
            assert (await backend.states())["a"] is not BackendState.FAILED, backend.reasons
            try:
                if (await http.get("/health")).status_code == 200:
                    break
            except httpx.HTTPError:
                await asyncio.sleep(0.5)
    await until(backend, BackendState.RUNNING)
    assert await ask(http) == 200


async def _there_and_back(backend: SleepBackend, http: httpx.AsyncClient) -> None:
    await backend.sleep("a", proof())
    await until(backend, BackendState.ASLEEP)
    await backend.sleep("a", proof())
    await backend.wake("a")
    await until(backend, BackendState.RUNNING)
    assert await ask(http) == 200


async def _a_request_slips_in(backend: SleepBackend, http: httpx.AsyncClient) -> None:
    await backend.sleep("a", proof())
    asking = asyncio.create_task(ask(http))
    await until(backend, BackendState.RUNNING, BackendState.ASLEEP)
    if not asking.done():
        await asyncio.sleep(1.0)
    if not asking.done():  # later than the last look: the scaler's probe sees it, and wakes
        await backend.wake("a")
    assert await asking == 200
    await backend.wake("a")
    await until(backend, BackendState.RUNNING)


async def _busy(backend: SleepBackend, http: httpx.AsyncClient) -> None:
    """Neither put to sleep nor stopped while a request runs."""
    before = await _told(http, GENERATED)
    asking = asyncio.create_task(ask(http, 3000))
    # The gauge alone may be of a request before: this one runs once tokens come.
    while await _told(http, GENERATED) <= before or await _told(http, RUNNING) != 1.0:
        assert not asking.done()
    for call in (backend.sleep("a", proof()), backend.stop("a")):
        with pytest.raises(BackendError) as refused:
            await call
        assert refused.value.cause == Cause.BUSY
    assert await asking == 200


async def _told(http: httpx.AsyncClient, series: bytes) -> float:
    page = (await http.get("/metrics")).content
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(series))


async def _killed_half_way(place: tuple[Path, Launch, str], http: httpx.AsyncClient) -> None:
    """The calls of a kvwatt that ends while they are made; the next one brings the server back."""
    for after_s in (0.0, 0.02, 0.2):
        for level in (1, 2):
            one, two = sleeping(place, level), sleeping(place, 1)
            await one.sleep("a", proof())
            await asyncio.sleep(after_s)
            await one.close()
            await until(two, BackendState.RUNNING, BackendState.ASLEEP, BackendState.FAILED)
            await two.wake("a")
            await until(two, BackendState.RUNNING)
            assert await ask(http) == 200
            await two.close()
