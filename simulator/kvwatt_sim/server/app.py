"""vLLM's HTTP routes over the engine loop, and the simulator's own under `/_sim/`."""

from __future__ import annotations

import asyncio
import time
import uuid
from http import HTTPStatus
from typing import Literal

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request

from kvwatt_sim.server import protocol
from kvwatt_sim.server.answer import Answered, CompletionAnswer
from kvwatt_sim.server.faults import MetricsFault, Mode, distort
from kvwatt_sim.server.plant import EnginePlant, PauseMode
from kvwatt_sim.server.protocol import ApiError, Limits
from kvwatt_sim.server.sleeping import Sleeper, attach_sleep

VLLM_VERSION = "0.32.0"
OUTPUT_TOKENS_HEADER = "x-output-tokens"
COMPLETIONS = "/v1/completions"


def build_app(plant: EnginePlant, limits: Limits, sleeper: Sleeper | None) -> FastAPI:
    """The whole HTTP face of one simulated server; without `sleeper` no development mode."""
    app = FastAPI(title="simulated vLLM", version=VLLM_VERSION, openapi_url=None)
    _Completions(plant, limits).attach(app)
    _attach_state(app, plant, limits, sleeper)
    if sleeper is not None:
        attach_sleep(app, sleeper)
        _attach_pauses(app, plant)
    _Metrics(plant).attach(app)
    return app


class _Completions:
    """`POST /v1/completions`."""

    def __init__(self, plant: EnginePlant, limits: Limits) -> None:
        self._plant = plant
        self._limits = limits

    def attach(self, app: FastAPI) -> None:
        """Add the route."""
        app.add_api_route(COMPLETIONS, self.complete, methods=["POST"], response_model=None)

    async def complete(self, raw: Request) -> Response:
        """Queue one engine request per choice and answer as their tokens come."""
        arrival_s = time.monotonic()
        body = await raw.body()
        try:
            request = protocol.parse(body)
            jobs = protocol.jobs(request, self._limits, _header_hint(raw))
        except ApiError as error:
            self._plant.page.http.observe(COMPLETIONS, error.status, time.monotonic() - arrival_s, len(body))
            return JSONResponse(error.content, error.status)
        request_id = f"cmpl-{uuid.uuid4().hex}"
        ticket = self._plant.submit(request_id, jobs, request.n, request.stream, arrival_s)
        return CompletionAnswer(
            Answered(request_id, self._limits.model_name, request, jobs),
            ticket,
            on_gone=lambda: self._plant.abort(request_id),
            on_end=lambda: self._plant.page.http.observe(
                COMPLETIONS, HTTPStatus.OK, time.monotonic() - arrival_s, len(body)
            ),
        )


def _header_hint(raw: Request) -> int | None:
    text = raw.headers.get(OUTPUT_TOKENS_HEADER)
    if text is None:
        return None
    if not text.isdecimal() or int(text) == 0:
        message = f"{OUTPUT_TOKENS_HEADER}: {text!r} is not a whole number above 0"
        raise ApiError(HTTPStatus.BAD_REQUEST, "BadRequestError", message)
    return int(text)


def _attach_state(app: FastAPI, plant: EnginePlant, limits: Limits, sleeper: Sleeper | None) -> None:
    started = int(time.time())

    @app.get("/health")
    @app.get("/ping")
    async def health() -> Response:
        return Response()

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": VLLM_VERSION}

    @app.get("/load")
    async def load() -> dict[str, int]:
        return {"server_load": plant.in_flight}

    @app.get("/_sim/status")
    async def status() -> dict[str, float]:
        loaded = sleeper is None or sleeper.weights_loaded
        return {"steps": plant.steps, "dropped_s": plant.dropped_s, "weights_loaded": loaded}

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        card = {
            "id": limits.model_name,
            "object": "model",
            "created": started,
            "owned_by": "vllm",
            "root": limits.model_name,
            "parent": None,
            "max_model_len": limits.max_model_len,
            "permission": [],
        }
        return {"object": "list", "data": [card]}


def _attach_pauses(app: FastAPI, plant: EnginePlant) -> None:
    @app.post("/pause")
    async def pause(mode: PauseMode = PauseMode.ABORT) -> dict[str, Literal["paused"]]:
        await plant.pause(mode)
        return {"status": "paused"}

    @app.post("/resume")
    async def resume() -> dict[str, Literal["resumed"]]:
        plant.resume()
        return {"status": "resumed"}

    @app.get("/is_paused")
    async def is_paused() -> dict[str, bool]:
        return {"is_paused": plant.paused}


class _Metrics:
    """`/metrics` and the switch that makes it misbehave."""

    def __init__(self, plant: EnginePlant) -> None:
        self._plant = plant
        self._fault = MetricsFault()
        self._frozen = b""

    def attach(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)
        app.add_api_route("/_sim/metrics", self.misbehave, methods=["POST"])

    async def metrics(self) -> Response:
        """The page, as the fault of the moment leaves it."""
        fault = self._fault
        if fault.mode is Mode.ERROR:
            return Response(b"Internal Server Error", HTTPStatus.INTERNAL_SERVER_ERROR)
        if fault.mode is Mode.SLOW:
            await asyncio.sleep(fault.delay_s)
        page = distort(self._plant.page.render(), fault, self._frozen)
        return Response(page, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def misbehave(self, fault: MetricsFault) -> MetricsFault:
        """Answer this way until told otherwise."""
        self._frozen = self._plant.page.render() if fault.mode is Mode.STALE else b""
        if fault.reset_counters:
            self._plant.reset_page()
        self._fault = fault
        return fault
