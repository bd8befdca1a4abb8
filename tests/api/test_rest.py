"""REST: what is read back, and refusals that say what is accepted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_plane import FakePlane
from token_files import AUTH, in_process, opened

from kvwattd.api.app import create_app


async def test_status_shows_each_instance(client: httpx.AsyncClient) -> None:
    """Status tells regime, clocks and measured and predicted step time of every instance."""
    body = (await client.get("/api/v1/status")).raise_for_status().json()
    chat, blind = body["instances"]
    assert chat["gpus"][0]["clock_target_mhz"] == 900
    assert chat["step"]["error_ratio"] == 0.25
    assert blind["regime"] == "failsafe"
    assert blind["running"] is None


async def test_savings_carry_their_baseline_and_attainment(client: httpx.AsyncClient) -> None:
    """A savings figure is labelled an estimate, with its baseline, and attainment stands beside it."""
    view = (await client.get("/api/v1/instances/chat")).json()
    assert view["savings"]["estimate"] is True
    assert "default clocks" in view["savings"]["baseline"]
    assert view["attainment"]["tbt"]["ratio"] == 0.99


async def test_decisions_come_with_reasons(client: httpx.AsyncClient) -> None:
    """A decision tells its reason; an unbounded forecast is null, for JSON has no infinity."""
    [decision] = (await client.get("/api/v1/decisions", params={"instance": "chat"})).json()
    assert decision["reason"] == "600 MHz would break TBT"
    assert decision["next_lower"]["tbt_s"] is None
    assert decision["binding"] == "tbt"


async def test_slo_is_read_back_as_put(client: httpx.AsyncClient) -> None:
    """Promises are replaced as a whole; the default quantile is 0.99."""
    put = await client.put("/api/v1/slos/chat", json={"ttft": {"limit_s": 1.5}}, headers=AUTH)
    assert put.status_code == 200
    expected = {"ttft": {"limit_s": 1.5, "quantile": 0.99}, "tbt": None, "e2e": None}
    assert (await client.get("/api/v1/slos/chat")).json() == expected
    assert (await client.get("/api/v1/slos")).json() == {"chat": expected}


async def test_mode_is_read_back_as_put(client: httpx.AsyncClient) -> None:
    """The mode is one of off, shadow and active."""
    assert (await client.get("/api/v1/mode")).json() == {"mode": "shadow"}
    assert (await client.put("/api/v1/mode", json={"mode": "active"}, headers=AUTH)).status_code == 200
    assert (await client.get("/api/v1/mode")).json() == {"mode": "active"}


async def test_override_is_set_shown_and_cleared(client: httpx.AsyncClient) -> None:
    """A clock held by hand shows in the instance until it is cleared; clearing twice is no error."""
    url = "/api/v1/instances/chat/override"
    put = await client.put(url, json={"clock_mhz": 900, "duration_s": 60}, headers=AUTH)
    assert put.json() == {"instance": "chat", "clock_mhz": 900, "left_s": 60.0}
    assert (await client.get("/api/v1/instances/chat")).json()["override"]["clock_mhz"] == 900
    for _ in range(2):
        assert (await client.delete(url, headers=AUTH)).status_code == 204
    assert (await client.get("/api/v1/instances/chat")).json()["override"] is None


async def test_override_may_hold_driver_default(client: httpx.AsyncClient) -> None:
    """A null clock keeps the GPUs at driver default."""
    body = {"clock_mhz": None, "duration_s": 1}
    put = await client.put("/api/v1/instances/chat/override", json=body, headers=AUTH)
    assert put.json()["clock_mhz"] is None


@pytest.mark.parametrize(
    ("method", "url", "body", "status", "field", "accepted"),
    [
        ("PUT", "/api/v1/mode", {"mode": "on"}, 422, "mode", "'off', 'shadow' or 'active'"),
        ("PUT", "/api/v1/mode", {"mode": "off", "x": 1}, 422, "x", "not permitted"),
        ("PUT", "/api/v1/slos/chat", {"tbt": {"limit_s": -1}}, 422, "tbt.limit_s", "greater than 0"),
        ("PUT", "/api/v1/slos/chat", {"tbt": {"limit_s": True}}, 422, "tbt.limit_s", "a number"),
        ("PUT", "/api/v1/slos/nobody", {"tbt": {"limit_s": 1}}, 404, "instance", "chat"),
        ("PUT", "/api/v1/slos/chat", {}, 409, None, "at least one"),
        (
            "PUT",
            "/api/v1/instances/chat/override",
            {"clock_mhz": 901, "duration_s": 1},
            409,
            "clock_mhz",
            "600, 900, 1200",
        ),
        (
            "PUT",
            "/api/v1/instances/chat/override",
            {"clock_mhz": 900, "duration_s": 3601},
            422,
            "duration_s",
            "3600",
        ),
        ("PUT", "/api/v1/instances/chat/override", {"clock_mhz": 900}, 422, "duration_s", "required"),
        ("GET", "/api/v1/decisions?limit=0", None, 422, "limit", "greater than or equal to 1"),
        ("GET", "/api/v1/decisions?instance=nobody", None, 404, "instance", "chat"),
        ("GET", "/api/v1/instances/nobody", None, 404, "instance", "chat"),
        ("GET", "/api/v1/instances/nobody/model", None, 404, "instance", "chat"),
        ("GET", "/api/v1/slos/nobody", None, 404, "instance", "chat"),
    ],
)
async def test_refusal_names_field_and_accepted(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    body: object,
    status: int,
    field: str | None,
    accepted: str,
) -> None:
    """Every refusal is problem details with the field to blame and what is accepted."""
    response = await client.request(method, url, json=body, headers=AUTH)
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.get("field") == field
    assert accepted in problem["accepted"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"mode": NaN}'])
async def test_garbage_body_is_a_422(client: httpx.AsyncClient, plane: FakePlane, content: bytes) -> None:
    """A body that is no JSON object of the right shape changes nothing."""
    headers = {**AUTH, "Content-Type": "application/json"}
    response = await client.put("/api/v1/mode", content=content, headers=headers)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert plane.mode_view.mode == "shadow"


async def test_huge_body_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    """A body over 64 KiB is a 413 also without a token; memory is not for anybody to fill."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 1 << 24:
            read += 1 << 14
            yield b" " * (1 << 14)

    response = await client.put("/api/v1/mode", content=endless(), headers=AUTH)
    assert response.status_code == 413
    assert "65536 bytes" in response.json()["detail"]
    assert read < 1 << 24


async def test_unknown_path_and_method_are_problems_too(client: httpx.AsyncClient) -> None:
    """Also the errors of the framework are problem details."""
    missing = await client.get("/api/v1/nothing")
    wrong = await client.post("/api/v1/mode")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.headers["content-type"] == wrong.headers["content-type"] == "application/problem+json"


async def test_a_fault_of_the_daemon_is_a_500_without_details(plane: FakePlane) -> None:
    """What went wrong inside is told in the log, not to the caller."""

    class Broken(FakePlane):
        def status(self) -> Any:
            raise RuntimeError("inner detail")

    async with in_process(create_app(Broken(), opened(None))) as client:
        response = await client.get("/api/v1/status")
    assert response.status_code == 500
    assert "inner detail" not in response.text


async def test_health_and_readiness_tell_by_status(client: httpx.AsyncClient, plane: FakePlane) -> None:
    """Probes answer 200 or 503; readiness tells every reason why not."""
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    plane.alive, plane.reasons = False, ["chat: no model for NVIDIA L20"]
    assert (await client.get("/healthz")).status_code == 503
    ready = await client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == plane.reasons


async def test_no_cross_origin_access_is_granted(client: httpx.AsyncClient) -> None:
    """A page of another origin gets no permission to read."""
    response = await client.get("/api/v1/status", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in response.headers


async def test_status_is_built_only_when_asked(client: httpx.AsyncClient, plane: FakePlane) -> None:
    """Views cost nothing until somebody reads them."""
    await client.get("/healthz")
    assert plane.statuses == 0
    await client.get("/metrics")
    assert plane.statuses == 1
