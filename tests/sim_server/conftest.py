"""A simulated server per module, and readers of its metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvwatt_sim.nvml.build import CompilerMissing, build
from kvwatt_sim.server.launch import SimServer

DEADLINE_S = 90.0


@dataclass(frozen=True)
class Page:
    """One scrape."""

    text: str

    def value(self, name: str, **labels: str) -> float:
        """The one sample of that name and those labels."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]


@dataclass(frozen=True)
class Streamed:
    """What a client saw of one streamed completion."""

    events: list[dict[str, object]]
    done: bool

    @property
    def choices(self) -> list[dict[str, object]]:
        return [choice for event in self.events for choice in event["choices"]]  # type: ignore[attr-defined]

    @property
    def tokens(self) -> int:
        return sum(str(choice["text"]).count("token") for choice in self.choices)


class Client:
    """Talks to one server the way a load generator and a daemon do."""

    def __init__(self, server: SimServer) -> None:
        self.server = server
        self.http = httpx.AsyncClient(base_url=server.base_url, timeout=DEADLINE_S)

    async def post(self, **body: object) -> httpx.Response:
        return await self.http.post("/v1/completions", json=body)

    async def stream(self, **body: object) -> Streamed:
        events: list[dict[str, object]] = []
        done = False
        async with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                assert not (done and line), "nothing follows [DONE]"
                if line == "data: [DONE]":
                    done = True
                elif line:
                    events.append(json.loads(line.removeprefix("data: ")))
        return Streamed(events, done)

    async def status(self) -> dict[str, float]:
        found: dict[str, float] = (await self.http.get("/_sim/status")).json()
        return found

    async def page(self) -> Page:
        response = await self.http.get("/metrics")
        assert response.status_code == 200
        return Page(response.text)

    async def page_when(self, condition: Callable[[Page], bool]) -> Page:
        """The first page that fulfils the condition; fails after a generous deadline."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition(page := await self.page()):  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.02)
        return page


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The simulated GPUs need a C compiler once."""
    try:
        build()
    except CompilerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server() -> Iterator[SimServer]:
    """An L20 that serves with default settings; shared, so leave it awake and well-behaved."""
    with SimServer(card="l20") as server:
        yield server


@pytest.fixture
async def client(server: SimServer) -> AsyncIterator[Client]:
    """A client of the module's server."""
    client = Client(server)
    async with client.http:
        yield client


@pytest.fixture
def connect() -> Callable[[SimServer], Client]:
    """Makes clients of servers that a test starts itself."""
    return Client
