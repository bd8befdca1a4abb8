"""Calls of the REST interface as bytes, sent to the application without a network."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from kvwattd.api.app import create_app
from kvwattd.api.limits import RateLimit

sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("api", "soak")]

from fake_plane import TOKEN, FakePlane
from token_files import opened, write_tokens

_CALLS: tuple[tuple[str, str, object], ...] = (
    ("PUT", "/api/v1/mode", {"mode": "active"}),
    ("PUT", "/api/v1/slos/chat", {"tbt": {"limit_s": 0.2, "quantile": 0.9}, "ttft": {"limit_s": 2}}),
    ("PUT", "/api/v1/instances/chat/override", {"clock_mhz": 900, "duration_s": 60}),
    ("PUT", "/api/v1/instances/chat/model/rollback", {"version": 1, "hold": True}),
    ("GET", "/api/v1/decisions?limit=3", None),
)


class RestApp:
    """The application over a plane in memory. An input is `METHOD PATH` on a line, then the body."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="kvwatt-fuzz-"))
        tokens = write_tokens(folder / "tokens.toml")
        self._app = create_app(FakePlane(), opened(tokens, writes=RateLimit(10**9)))
        self.corpus = tuple(json.dumps([*call]).encode() for call in _CALLS)

    async def answer(self, data: bytes) -> int:
        """The status of the answer; an input that names no call sends its bytes as a body to the first."""
        method, path, body = _call(data)
        route, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": route,
            "raw_path": route.encode("utf-8", "replace"),
            "query_string": query.encode("utf-8", "replace"),
            "headers": [
                (b"host", b"127.0.0.1"),
                (b"content-type", b"application/json"),
                (b"authorization", b"Bearer " + TOKEN.encode()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await self._app(scope, receive, send)
        return statuses[0]


def _call(data: bytes) -> tuple[str, str, bytes]:
    try:
        method, path, body = json.loads(data)
        if method in ("PUT", "GET", "DELETE", "POST") and isinstance(path, str):
            return method, path, json.dumps(body).encode()
    except (ValueError, TypeError, RecursionError):
        pass
    return "PUT", _CALLS[len(data) % 4][1], data
