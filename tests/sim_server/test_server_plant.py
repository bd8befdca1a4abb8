"""The server as a plant: clocks slow it, work heats it, sleep and signals stop it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvwatt_sim import cards
from kvwatt_sim.gpu import step_time_s
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.server.launch import ServerStartError, SimServer

LOW_MHZ = 300
LOCK = """
import sys, pynvml
pynvml.nvmlInit()
pynvml.nvmlDeviceSetGpuLockedClocks(pynvml.nvmlDeviceGetHandleByUUID(sys.argv[1]), *map(int, sys.argv[2:]))
"""


def lock_through_nvml(server: SimServer, mhz: int) -> None:
    """Lock the clock from another process through the unmodified nvidia-ml-py."""
    command = [sys.executable, "-c", LOCK, server.uuids[0], str(mhz), str(mhz)]
    subprocess.run(command, env=server.env(), check=True, timeout=180)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do; fails after a generous deadline."""
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110  # nothing in this process could set an event
            await asyncio.sleep(0.01)


async def mean_itl_s(client: Any, tokens: int) -> float:
    """Mean gap between the tokens of one request, from the server's own metrics.

    A run in which this host was too busy to keep the server's time is no measurement: it is repeated."""
    name = "vllm:inter_token_latency_seconds"
    async with asyncio.timeout(240):
        dropped_s = -1.0
        while dropped_s != (status := await client.status())["dropped_s"]:
            dropped_s = status["dropped_s"]
            before = await client.page()
            await client.stream(prompt=[1] * 16, max_tokens=tokens)
            after = await client.page()
    gaps = after.value(f"{name}_count") - before.value(f"{name}_count")
    return float(after.value(f"{name}_sum") - before.value(f"{name}_sum")) / gaps


async def test_steps_take_what_the_card_says_at_the_clock_of_the_moment(
    connect: Callable[[SimServer], Any],
) -> None:
    """A clock locked through NVML slows the tokens by the ratio that the card's law gives."""
    card = cards.load("l20")
    with SimServer(card="l20") as server, SimGpus.open(server.state) as gpus:
        client = connect(server)
        async with client.http:
            fast_s = await mean_itl_s(client, 20)
            lock_through_nvml(server, LOW_MHZ)
            await until(lambda: gpus.load_clock_mhz(0) == LOW_MHZ)
            slow_s = await mean_itl_s(client, 20)
    expected = step_time_s(card, LOW_MHZ, 1, 26, 0) / step_time_s(card, card.boost_mhz, 1, 26, 0)
    assert expected > 1.3
    assert slow_s / fast_s == pytest.approx(expected, rel=0.15)


async def test_a_long_step_speeds_up_when_the_clock_rises_on_the_way(
    connect: Callable[[SimServer], Any],
) -> None:
    """A prefill of a quarter of a minute at the lowest clock ends soon after the lock is lifted."""
    with (
        SimServer(card="l20", max_num_batched_tokens=10_000, max_num_seqs=4) as server,
        SimGpus.open(server.state) as gpus,
    ):
        gpus.request_lock(0, (210, 210))
        client = connect(server)
        async with client.http:
            asking = asyncio.create_task(client.post(prompt=[1] * 10_000, max_tokens=1))
            await client.page_when(lambda page: page.value("vllm:num_requests_running") == 1)
            gpus.request_lock(0, None)
            await asking
            page = await client.page()
    card = cards.load("l20")
    whole_step_s = step_time_s(card, 210, 0, 0, 10_000)
    assert page.value("vllm:request_prefill_time_seconds_sum") < whole_step_s / 2


def idle(gpus: SimGpus) -> bool:
    """Whether nothing is computed on the first GPU."""
    now = gpus.read(0)
    return (now.compute, now.memory) == (0, 0)


async def test_load_draws_more_power_than_idling(client: Any) -> None:
    """The exact energy counter rises faster while tokens are made, and falls back afterwards."""
    with SimGpus.open(client.server.state) as gpus:

        async def watts_during(work: Any) -> float:
            start_j, start_s = gpus.energy_j(0), gpus.now_s()
            await work
            return (gpus.energy_j(0) - start_j) / (gpus.now_s() - start_s)

        await until(lambda: idle(gpus))
        idle_w = await watts_during(asyncio.sleep(0.3))
        prompts = [[1] * 200 for _ in range(16)]
        busy_w = await watts_during(client.post(prompt=prompts, max_tokens=15))
        await until(lambda: idle(gpus))  # the answer may be here before the engine is told to rest
        again_w = await watts_during(asyncio.sleep(0.3))
    assert busy_w > 1.3 * idle_w
    assert again_w == pytest.approx(idle_w, rel=0.05)


async def test_all_gpus_of_a_group_work_and_the_slowest_sets_the_pace(
    connect: Callable[[SimServer], Any],
) -> None:
    """At tp = 2 both GPUs are active; one with a low clock slows the engine."""
    with SimServer(card="a100", gpus=(0, 1)) as server, SimGpus.open(server.state) as gpus:
        client = connect(server)
        async with client.http:
            fast_s = await mean_itl_s(client, 10)
            asking = asyncio.create_task(client.post(prompt=[1] * 16, max_tokens=500))
            await client.page_when(lambda page: page.value("vllm:num_requests_running") == 1)
            assert gpus.read(0).memory == gpus.read(1).memory > 0
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            gpus.request_lock(1, (gpus.spec(1).supported_mhz[0],) * 2)
            await until(lambda: gpus.read(1).lock_mhz is not None)
            assert await mean_itl_s(client, 10) > 1.1 * fast_s


async def test_a_sleeping_server_lets_requests_hang_until_it_wakes(client: Any) -> None:
    """Sleep shows in the metrics, answers nothing, and loses nothing."""
    state = "vllm:engine_sleep_state"
    assert (await client.http.post("/sleep?level=1")).json() == {"status": "sleeping", "level": 1}
    assert (await client.http.get("/is_sleeping")).json() == {"is_sleeping": True}
    asking = asyncio.create_task(client.post(prompt=[1] * 10, max_tokens=3))
    page = await client.page_when(lambda page: page.value("vllm:num_requests_waiting") == 1)
    assert page.value(state, sleep_state="awake") == 0
    assert page.value(state, sleep_state="weights_offloaded") == 1
    await asyncio.sleep(0.2)
    assert not asking.done()
    await client.http.post("/wake_up")
    assert (await asking).json()["usage"]["completion_tokens"] == 3
    assert (await client.page()).value(state, sleep_state="awake") == 1
    assert (await client.http.get("/is_sleeping")).json() == {"is_sleeping": False}


async def test_sleep_aborts_what_runs(client: Any) -> None:
    """By default requests in flight end with the finish reason abort, which vLLM counts."""
    asking = asyncio.create_task(client.stream(prompt=[1] * 10, max_tokens=5000))
    await client.page_when(lambda page: page.value("vllm:num_requests_running") == 1)
    before = await client.page()
    await client.http.post("/sleep?level=2")
    answer = await asking
    page = await client.page()
    await client.http.post("/wake_up")
    assert answer.choices[-1]["finish_reason"] == "abort"
    name = "vllm:request_success_total"
    gained = page.value(name, finished_reason="abort") - before.value(name, finished_reason="abort")
    assert gained == 1
    assert page.value("vllm:engine_sleep_state", sleep_state="discard_all") == 1
    assert page.value("vllm:num_requests_running") == 0


async def test_pause_keeps_or_waits(client: Any) -> None:
    """Keep freezes a request that resume lets finish; wait lets it finish first and holds newer ones."""
    asking = asyncio.create_task(client.stream(prompt=[1] * 10, max_tokens=40))
    await client.page_when(lambda page: page.value("vllm:num_requests_running") == 1)
    await client.http.post("/pause?mode=keep")
    assert (await client.http.get("/is_paused")).json() == {"is_paused": True}
    with SimGpus.open(client.server.state) as gpus:
        await until(lambda: gpus.read(0).memory == 0)  # the step that ran has ended
    frozen = (await client.page()).value("vllm:generation_tokens_total")
    await asyncio.sleep(0.1)
    assert (await client.page()).value("vllm:generation_tokens_total") == frozen
    await client.http.post("/resume")
    assert (await asking).tokens == 40
    asking = asyncio.create_task(client.stream(prompt=[1] * 10, max_tokens=20))
    await client.page_when(lambda page: page.value("vllm:num_requests_running") == 1)
    pausing = asyncio.create_task(client.http.post("/pause?mode=wait"))
    assert (await asking).tokens == 20
    await pausing
    later = asyncio.create_task(client.stream(prompt=[1] * 10, max_tokens=2))
    await client.page_when(lambda page: page.value("vllm:num_requests_waiting") == 1)
    await client.http.post("/resume")
    assert (await later).tokens == 2


async def test_sigterm_leaves_idle_gpus_and_the_port_can_be_used_again(
    connect: Callable[[SimServer], Any],
) -> None:
    """A stop in the middle of a request ends cleanly; a start afterwards serves at the same address."""
    with SimServer(card="l20") as server, SimGpus.open(server.state) as gpus:
        first_url = server.base_url
        client = connect(server)
        async with client.http:
            asking = asyncio.create_task(client.stream(prompt=[1] * 10, max_tokens=5000))
            await client.page_when(lambda page: page.value("vllm:num_requests_running") == 1)
            assert gpus.read(0).memory > 0
            assert await asyncio.to_thread(server.stop) == 0
            await asyncio.gather(asking, return_exceptions=True)
        assert (gpus.read(0).compute, gpus.read(0).memory) == (0, 0)
        server.start()
        assert server.base_url == first_url
        client = connect(server)
        async with client.http:
            assert (await client.http.get("/health")).status_code == 200
        assert server.kill() == -9


async def test_the_launcher_works_as_asynchronous_context(connect: Callable[[SimServer], Any]) -> None:
    """`async with` starts and stops without blocking the loop."""
    async with SimServer(card="l20", model_name="other") as server:
        client = connect(server)
        async with client.http:
            assert (await client.http.get("/v1/models")).json()["data"][0]["id"] == "other"


@pytest.mark.parametrize(
    ("card", "options", "named"),
    [
        ("l20", {"num_blocks": 10, "max_model_len": 1000}, "--max-model-len 1000"),
        ("l20", {"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_batched_tokens = 32"),
        ("l20", {"metrics_layout": "0.5"}, "--metrics-layout"),
        ("l20", {"block_size": 0}, "--block-size"),
    ],
)
def test_bad_options_stop_the_start_and_are_named(card: str, options: dict[str, Any], named: str) -> None:
    """The launcher's error carries what the server said about the option."""
    with pytest.raises(ServerStartError, match=named):
        SimServer(card=card, **options).start()


def test_a_missing_state_file_or_gpu_is_named(tmp_path: Path) -> None:
    """Without its GPUs the server does not start."""
    with pytest.raises(ServerStartError, match="nowhere"):
        SimServer(card="l20", state=tmp_path / "nowhere").start()
    SimGpus.create(tmp_path / "one", [cards.load("l20").gpu_spec("GPU-0")]).close()
    with pytest.raises(ServerStartError, match="gpu = 3"):
        SimServer(card="l20", state=tmp_path / "one", gpus=(3,)).start()
