"""Who may read and who may change what, and how tokens are rotated."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_plane import READ_TOKEN, TOKEN, FakePlane
from hypothesis import given
from hypothesis import strategies as st
from token_files import AUTH, BOTH, READ_AUTH, entries, in_process, opened, write_tokens

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.tokens import TokenFile, TokenFileError, add_entry, digest, parse_tokens, read_tokens

WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "/api/v1/mode", {"mode": "active"}),
    ("DELETE", "/api/v1/mode", None),
    ("PUT", "/api/v1/slos/chat", {"tbt": {"limit_s": 0.2}}),
    ("DELETE", "/api/v1/slos/chat", None),
    ("PUT", "/api/v1/instances/chat/override", {"clock_mhz": 900, "duration_s": 60}),
    ("DELETE", "/api/v1/instances/chat/override", None),
    ("PUT", "/api/v1/instances/chat/model/rollback", {"version": 1}),
    ("PUT", "/api/v1/pool/scale", {"instances": 2, "duration_s": 60}),
    ("DELETE", "/api/v1/pool/scale", None),
    ("POST", "/api/v1/config/reload", None),
]
READS = ["/api/v1/status", "/api/v1/decisions", "/api/v1/settings", "/api/v1/config", "/metrics"]
OFF = {"mode": "off"}
MODE = "/api/v1/mode"


def remove(path: Path) -> None:
    path.unlink()


def state_of(plane: FakePlane) -> tuple[object, ...]:
    by_hand = (plane.by_hand, plane.scale_by_hand)
    return (plane.mode_view, dict(plane.slo_views), *by_hand, plane.serving, plane.reloads)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Bearer {digest(TOKEN)}"}, 401),
        ({"Authorization": "Bearer"}, 401),
        (READ_AUTH, 403),
    ],
)
async def test_no_write_without_a_control_token(
    client: httpx.AsyncClient, plane: FakePlane, headers: dict[str, str], status: int
) -> None:
    """Without a token of scope control nothing changes; what stands in the file is no token either."""
    before = state_of(plane)
    for method, url, body in WRITES:
        response = await client.request(method, url, json=body, headers=headers)
        assert response.status_code == status, (method, url)
        assert ("www-authenticate" in response.headers) == (status == 401)
    assert state_of(plane) == before


async def test_a_control_token_permits_every_write(client: httpx.AsyncClient) -> None:
    """The list of writes in these tests consists of calls that would succeed."""
    for method, url, body in WRITES:
        answer = await client.request(method, url, json=body, headers=AUTH)
        assert answer.status_code in (200, 204), (method, url)


async def test_exactly_the_listed_writes_and_reads_exist(client: httpx.AsyncClient) -> None:
    """No call that changes something is missing from these tests, and each names the bearer scheme."""
    paths = (await client.get("/api/v1/openapi.json")).json()["paths"]
    found = {(method.upper(), path): op for path, item in paths.items() for method, op in item.items()}
    writing = {(method, url.replace("chat", "{instance}")) for method, url, _ in WRITES}
    assert {key for key in found if key[0] != "GET"} == writing
    free = {path for (_, path), op in found.items() if not op.get("security")}
    assert free == {"/healthz", "/readyz"}


async def test_without_a_token_file_writes_are_forbidden(plane: FakePlane) -> None:
    """Without api.token_file every write is refused, whatever is presented, and the way out is told."""
    async with in_process(create_app(plane, opened(None))) as client:
        for method, url, body in WRITES:
            response = await client.request(method, url, json=body, headers=AUTH)
            assert response.status_code == 403, (method, url)
            assert "kvwatt token" in response.json()["accepted"]


@pytest.mark.parametrize(
    ("access", "client", "base_url", "free"),
    [
        ("loopback", "127.0.0.1", "http://127.0.0.1:8484", True),
        ("loopback", "::1", "http://[::1]:8484", True),
        ("loopback", "127.0.0.1", "http://localhost", True),
        ("loopback", "127.0.0.1", "http://rebound.example", False),
        ("loopback", "127.0.0.1", "http://127.0.0.1.rebound.example", False),
        ("loopback", "192.0.2.7", "http://127.0.0.1", False),
        ("loopback", "192.0.2.7", "http://192.0.2.1", False),
        ("token", "127.0.0.1", "http://127.0.0.1", False),
        ("open", "192.0.2.7", "http://kvwatt.example", True),
    ],
)
async def test_reading_is_free_only_where_it_is_configured(
    plane: FakePlane, token_file: Path, access: Any, client: str, base_url: str, free: bool
) -> None:
    """By default this machine reads freely, under an address of its own; others need a token of any scope."""
    app = create_app(plane, opened(token_file, access))
    async with in_process(app, (client, 1), base_url) as caller:
        for url in READS:
            assert (await caller.get(url)).status_code == (200 if free else 401), url
            for headers in (AUTH, READ_AUTH):
                assert (await caller.get(url, headers=headers)).status_code == 200, url
        assert (await caller.get("/healthz")).status_code == 200


async def test_a_rotated_token_takes_effect_at_the_next_call(
    client: httpx.AsyncClient, token_file: Path
) -> None:
    """A new token is valid at once, and the old one no longer is."""
    new = "another-token"
    assert (await client.put(MODE, json=OFF, headers=AUTH)).status_code == 200
    write_tokens(token_file, ("operator", "control", new))
    assert (await client.put(MODE, json=OFF, headers=AUTH)).status_code == 401
    assert (await client.put(MODE, json=OFF, headers={"Authorization": f"Bearer {new}"})).status_code == 200


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "no TOML": lambda path: path.write_text(TOKEN),
    "a plain token for a digest": lambda path: path.write_text(entries(*BOTH).replace(digest(TOKEN), TOKEN)),
    "unknown scope": lambda path: path.write_text(entries(("operator", "root", TOKEN))),
    "one name twice": lambda path: path.write_text(entries(BOTH[0], BOTH[0])),
    "open to others": lambda path: path.chmod(0o644),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "too large": lambda path: path.write_text("#" * 100_000),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_a_bad_token_file_keeps_the_old_tokens_with_an_alarm(
    client: httpx.AsyncClient, access: Access, token_file: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A slip while rotating locks nobody out, is told, and is over when the file is good again."""
    assert (await client.put(MODE, json=OFF, headers=AUTH)).status_code == 200
    BAD_FILES[name](token_file)
    for _ in range(2):
        assert (await client.put(MODE, json=OFF, headers=AUTH)).status_code == 200
    assert access.tokens.alarm is not None and str(token_file) in access.tokens.alarm
    assert [r.levelname for r in caplog.records if "token file" in r.getMessage()] == ["ERROR"]
    assert TOKEN not in caplog.text
    write_tokens(token_file)
    assert (await client.put(MODE, json=OFF, headers=AUTH)).status_code == 200
    assert access.tokens.alarm is None


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_token_file_is_refused_at_start(token_file: Path, name: str) -> None:
    """The daemon does not start with it; the error names the file and the next step, and no content."""
    BAD_FILES[name](token_file)
    with pytest.raises(TokenFileError) as refused:
        TokenFile(token_file).load()
    assert str(token_file) in str(refused.value) and "kvwatt token" in str(refused.value)
    assert TOKEN not in str(refused.value)


async def test_a_vanished_token_file_permits_nobody(
    client: httpx.AsyncClient, access: Access, token_file: Path
) -> None:
    """Taking the file away withdraws every token."""
    assert (await client.put(MODE, json=OFF, headers=AUTH)).status_code == 200
    remove(token_file)
    assert (await client.put(MODE, json=OFF, headers=AUTH)).status_code == 401
    assert access.tokens.alarm is not None and "gone" in access.tokens.alarm


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_of_another_user_is_refused(token_file: Path) -> None:
    """Who may write the file decides who controls: it belongs to the daemon's user or to root."""
    os.chown(token_file, 12345, -1)
    with pytest.raises(TokenFileError, match="12345"):
        read_tokens(token_file)


@given(st.text(max_size=300))
def test_no_text_makes_the_parser_fail_otherwise_than_by_its_error(text: str) -> None:
    """Whatever stands in the file, it is either entries or a TokenFileError."""
    try:
        parsed = parse_tokens(text)
    except TokenFileError:
        return
    assert all(len(entry.sha256) == 64 for entry in parsed)


def test_adding_a_token_keeps_the_others(tmp_path: Path) -> None:
    """`kvwatt token` makes the file, adds to it, and leaves it as it was when the name is taken."""
    path = tmp_path / "tokens.toml"
    add_entry(path, "operator", "control", TOKEN)
    add_entry(path, "grafana", "read", READ_TOKEN)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    with pytest.raises(TokenFileError, match="operator"):
        add_entry(path, "operator", "read", "x")
    assert path.read_text() == before
    tokens = TokenFile(path)
    tokens.load()
    found = [tokens.identify(token) for token in (TOKEN, READ_TOKEN, "", digest(TOKEN))]
    assert [entry.name if entry else None for entry in found] == ["operator", "grafana", None, None]


async def test_no_token_reaches_logs_answers_or_files(
    client: httpx.AsyncClient, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is sent wherever, no token stands in any output but the answer that quotes its own body."""
    caplog.set_level(logging.DEBUG)
    wrong = "wrong-but-secret-elsewhere"
    answers = []
    for token in (TOKEN, READ_TOKEN, wrong):
        headers = {"Authorization": f"Bearer {token}"}
        for method, url, body in WRITES:
            answers.append(await client.request(method, url, json=body, headers=headers))
        answers += [await client.get(url, headers=headers) for url in (*READS, "/api/v1/audit")]
    answers.append(await client.put(MODE, json={"mode": TOKEN}, headers=AUTH))
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("kvwattd"))
    audit = token_file.with_name("audit.jsonl").read_text()
    assert ours.count("operator") >= len(WRITES) and audit.count("operator") >= len(WRITES)
    said = [ours, audit, *(answer.text for answer in answers[:-1])]
    for token in (TOKEN, READ_TOKEN, wrong):
        assert not [text for text in said if token in text]
