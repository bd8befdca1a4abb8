"""`python -m kvwatt_sim.server`: card and state file in, HTTP out."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn

from kvwatt.state import EngineShape
from kvwatt_sim import cards
from kvwatt_sim.cards import Card
from kvwatt_sim.engine import Engine
from kvwatt_sim.server.app import build_app
from kvwatt_sim.server.families import Layout
from kvwatt_sim.server.gpus import GpuGroup
from kvwatt_sim.server.options import Options, parse_args
from kvwatt_sim.server.page import PageShape
from kvwatt_sim.server.plant import EnginePlant
from kvwatt_sim.server.protocol import Limits
from kvwatt_sim.server.sleeping import Sleeper, SleepTimes

STOP_TIMEOUT_S = 1
MEMORY_SHARE = 0.9  # of each GPU, as vLLM takes for itself


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    options = parse_args(arguments)
    try:
        card = cards.load(options.card, len(options.gpus))
        shape = _shape(options, card)
        max_model_len = _max_model_len(options, card, shape)
        engine = Engine(shape, options.prefix_hit_ratio)
        gpus = GpuGroup.open(options.state, options.gpus)
        listener = _listen(options.host, options.port)
    except (OSError, ValueError) as error:
        sys.exit(f"kvwatt_sim.server: {error}")
    try:
        asyncio.run(_serve(options, card, engine, gpus, max_model_len, listener))
    finally:
        gpus.close()


def _shape(options: Options, card: Card) -> EngineShape:
    return EngineShape(
        block_size=options.block_size,
        num_blocks=options.num_blocks or card.num_blocks * card.block_size // options.block_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        tp=len(options.gpus),
    )


def _max_model_len(options: Options, card: Card, shape: EngineShape) -> int:
    """Raises ValueError when a request of that length would never fit the KV cache, as vLLM does."""
    if options.max_model_len is None:
        return min(card.max_model_len, shape.kv_capacity_tokens)
    if options.max_model_len > shape.kv_capacity_tokens:
        raise ValueError(
            f"--max-model-len {options.max_model_len}: the KV cache holds {shape.kv_capacity_tokens} tokens"
        )
    return options.max_model_len


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))  # as vLLM: taken at once, and deaf until the model is loaded
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port}: {error}") from error
    # Accepted sockets inherit it; without it tokens wait up to 40 ms for a delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(
    options: Options,
    card: Card,
    engine: Engine,
    gpus: GpuGroup,
    max_model_len: int,
    listener: socket.socket,
) -> None:
    page_shape = PageShape(options.model_name, engine.shape, max_model_len, options.metrics_layout)
    plant = EnginePlant(engine, card, gpus, page_shape, options.time_scale)
    held_bytes = int(MEMORY_SHARE * card.memory_total_bytes)

    def hold(share: float) -> None:
        gpus.hold_memory(os.getpid(), int(share * held_bytes))

    times = SleepTimes(options.sleep_s, options.wake_s, options.reload_s)
    sleeper = (
        Sleeper(plant, times, hold, options.metrics_layout >= Layout.V0_32) if options.dev_mode else None
    )
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(plant, Limits(options.model_name, max_model_len), sleeper),
            backlog=512,
            http="h11",
            loop="asyncio",
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    )
    hold(1.0)
    await asyncio.sleep(options.start_s)  # SIGTERM ends it here, as it ends a vLLM that still loads
    # uvicorn raises the signal again when it has shut down; the rest of this function must still run.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    running = asyncio.create_task(plant.run())
    running.add_done_callback(lambda _: setattr(server, "should_exit", True))
    ready = asyncio.create_task(_announce(server, listener))
    await server.serve(sockets=[listener])
    for task in (ready, running):
        task.cancel()
    hold(0.0)
    outcomes = await asyncio.gather(ready, running, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _announce(server: uvicorn.Server, listener: socket.socket) -> None:
    while not server.started:  # noqa: ASYNC110  # uvicorn offers no event
        await asyncio.sleep(0.01)
    sys.stdout.write(f"READY {listener.getsockname()[1]}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
