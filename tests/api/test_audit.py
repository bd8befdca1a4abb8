"""Every change and every refused attempt is recorded; the record costs the service nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_plane import FakePlane
from token_files import AUTH, READ_AUTH, in_process, opened

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.limits import RateLimit
from kvwattd.audit import AuditLog


def lines(token_file: Path) -> list[dict[str, Any]]:
    path = token_file.with_name("audit.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_change_is_recorded_with_who_what_before_and_after(
    client: httpx.AsyncClient, token_file: Path
) -> None:
    """The record tells the token's name, the call, and the values before and after."""
    await client.put("/api/v1/mode", json={"mode": "active"}, headers=AUTH)
    await client.put("/api/v1/slos/chat", json={"tbt": {"limit_s": 0.2}}, headers=AUTH)
    first, second = lines(token_file)
    assert (first["who"], first["action"], first["outcome"]) == ("operator", "PUT /api/v1/mode", "done")
    assert (first["before"], first["after"]) == ({"mode": "shadow"}, {"mode": "active"})
    assert first["client"] == "127.0.0.1" and first["time"].endswith("+00:00")
    assert second["before"]["tbt"]["limit_s"] == 0.1 and second["after"]["tbt"]["limit_s"] == 0.2


@pytest.mark.parametrize(
    ("headers", "url", "body", "who", "status"),
    [
        ({}, "/api/v1/mode", {"mode": "off"}, "anonymous", 401),
        (READ_AUTH, "/api/v1/mode", {"mode": "off"}, "grafana", 403),
        (AUTH, "/api/v1/mode", {"mode": "on"}, "operator", 422),
        (AUTH, "/api/v1/slos/nobody", {"tbt": {"limit_s": 1}}, "operator", 404),
        (AUTH, "/api/v1/slos/chat", {}, "operator", 409),
    ],
)
async def test_refused_attempts_are_recorded(
    client: httpx.AsyncClient,
    token_file: Path,
    headers: dict[str, str],
    url: str,
    body: object,
    who: str,
    status: int,
) -> None:
    """Who tried what, and why it was refused; nothing is said to have changed."""
    await client.put(url, json=body, headers=headers)
    [record] = lines(token_file)
    assert (record["who"], record["status"], record["outcome"]) == (who, status, "refused")
    assert record["detail"] and "after" not in record


async def test_reads_are_not_recorded(client: httpx.AsyncClient, token_file: Path) -> None:
    """Only changes and attempts at them are."""
    await client.get("/api/v1/status", headers=AUTH)
    assert lines(token_file) == []


async def test_the_audit_log_is_read_by_control_tokens_only(client: httpx.AsyncClient) -> None:
    """Newest first, at most as many as asked for."""
    for mode in ("off", "shadow", "active"):
        await client.put("/api/v1/mode", json={"mode": mode}, headers=AUTH)
    assert (await client.get("/api/v1/audit")).status_code == 401
    assert (await client.get("/api/v1/audit", headers=READ_AUTH)).status_code == 403
    found = (await client.get("/api/v1/audit", params={"limit": 2}, headers=AUTH)).json()
    assert [record["after"]["mode"] for record in found] == ["active", "shadow"]


async def test_a_cut_off_record_spoils_only_itself(tmp_path: Path) -> None:
    """A disk that was full leaves half a line; the next record stands on a line of its own."""
    path = tmp_path / "audit.jsonl"
    path.write_text('{"time": "2026-01-01T00')
    log = AuditLog(path)
    await log.record("operator", "here", "PUT /x", 200)
    assert [record.who for record in await log.newest(10)] == ["operator"]
    assert path.read_text().count("\n") == 2


async def test_only_the_tail_of_a_long_log_is_read(tmp_path: Path) -> None:
    """However long the file has grown, what is shown is the newest."""
    path = tmp_path / "audit.jsonl"
    path.write_text(("x" * 999 + "\n") * 3000)
    log = AuditLog(path)
    await log.record("operator", "here", "PUT /x", 200)
    assert len(await log.newest(10)) == 1


async def test_a_full_disk_stops_no_change(
    plane: FakePlane, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The change is done, the lost record is counted, and the log still holds it."""
    access = opened(token_file)
    access.audit = AuditLog(Path("/dev/full"))
    caplog.set_level("INFO")
    async with in_process(create_app(plane, access)) as client:
        assert (await client.put("/api/v1/mode", json={"mode": "off"}, headers=AUTH)).status_code == 200
    assert plane.mode_view.mode == "off"
    assert access.audit.errors == 1 and access.audit.last_error
    assert '"after":{"mode":"off"}' in caplog.text


async def test_writes_over_the_rate_are_told_when_to_come_again(plane: FakePlane, token_file: Path) -> None:
    """429 with Retry-After; other tokens and reads are not held up; after the wait there is room again."""
    now_s = 0.0
    access = opened(token_file, writes=RateLimit(3, lambda: now_s))
    async with in_process(create_app(plane, access)) as client:

        async def put(headers: dict[str, str]) -> httpx.Response:
            return await client.put("/api/v1/mode", json={"mode": "off"}, headers=headers)

        assert [(await put(AUTH)).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = await put(AUTH)
        wait_s = int(refused.headers["retry-after"])
        assert 0 < wait_s <= 20 and "api.writes_per_minute" in refused.json()["accepted"]
        assert (await put(READ_AUTH)).status_code == 403
        assert (await client.get("/api/v1/status")).status_code == 200
        now_s += wait_s
        assert (await put(AUTH)).status_code == 200
    assert access.refused[429] == 2


async def test_a_flood_of_strangers_fills_no_disk(plane: FakePlane, token_file: Path, access: Access) -> None:
    """Attempts without a token share one allowance; beyond it they are counted and not written down."""
    access = opened(token_file, writes=RateLimit(5, lambda: 0.0))
    async with in_process(create_app(plane, access)) as client:
        for _ in range(50):
            await client.put("/api/v1/mode", json={"mode": "off"})
        assert (await client.put("/api/v1/mode", json={"mode": "off"}, headers=AUTH)).status_code == 200
    assert len(lines(token_file)) == 6
    assert access.refused == {401: 5, 429: 45}


@pytest.mark.parametrize("content", [b"{", b" " * (1 << 17), b'{"mode": "off"}'])
async def test_nothing_of_a_strangers_body_is_looked_at(
    plane: FakePlane, token_file: Path, content: bytes
) -> None:
    """Malformed, oversized or sound: without a token it is a 401 out of the strangers' allowance."""
    access = opened(token_file, writes=RateLimit(2, lambda: 0.0))
    async with in_process(create_app(plane, access)) as client:
        answers = [await client.put("/api/v1/mode", content=content) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
    assert len(lines(token_file)) == 2


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1000])
def test_no_pattern_of_calls_gets_more_than_the_rate(per_minute: int) -> None:
    """Over any time, at most the bucket and what flowed in since; calls that wait as told succeed."""
    now_s, taken = 0.0, 0
    limit = RateLimit(per_minute, lambda: now_s)
    for step in range(3000):
        wait_s = limit.wait_s("a")
        taken += wait_s == 0
        now_s += wait_s if wait_s and step % 3 == 0 else 0.013
        assert taken <= per_minute * (1 + now_s / 60) + 1e-6
    assert taken > per_minute
