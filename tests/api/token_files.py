"""Token files, and clients of an application in the same process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import httpx
from fake_plane import READ_TOKEN, TOKEN
from fastapi import FastAPI

from kvwattd.api.auth import Access
from kvwattd.api.limits import RateLimit
from kvwattd.api.tokens import TokenFile, digest
from kvwattd.audit import AuditLog

AUTH = {"Authorization": f"Bearer {TOKEN}"}
READ_AUTH = {"Authorization": f"Bearer {READ_TOKEN}"}
BOTH = (("operator", "control", TOKEN), ("grafana", "read", READ_TOKEN))


def entries(*tokens: tuple[str, str, str]) -> str:
    """The text of a file with name, scope and token of each."""
    return "\n".join(
        f'[[token]]\nname = "{name}"\nscope = "{scope}"\nsha256 = "{digest(token)}"\n'
        for name, scope, token in tokens
    )


def write_tokens(path: Path, *tokens: tuple[str, str, str], mode: int = 0o600) -> Path:
    """A token file, replaced as a whole as an editor does; with both tokens where none is given."""
    partial = path.with_suffix(".new")
    partial.write_text(entries(*(tokens or BOTH)))
    partial.chmod(mode)
    return partial.replace(path)


def opened(
    path: Path | None,
    read_access: Literal["loopback", "token", "open"] = "loopback",
    writes: RateLimit | None = None,
) -> Access:
    """Access by the tokens in a file, with the audit log beside it."""
    tokens = TokenFile(path)
    tokens.load()
    audit = AuditLog(path.with_name("audit.jsonl") if path else None)
    return Access(tokens, audit, writes or RateLimit(10_000), read_access)


def in_process(
    app: FastAPI, client: tuple[str, int] = ("127.0.0.1", 1234), base_url: str = "http://127.0.0.1"
) -> httpx.AsyncClient:
    """A client that comes from `client` and names `base_url`."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=client)
    return httpx.AsyncClient(transport=transport, base_url=base_url)
