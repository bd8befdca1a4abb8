from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fake_plane import TOKEN, FakePlane

from kvwattd.api.app import create_app
from kvwattd.api.auth import TokenFile


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture
async def client(plane: FakePlane, token_file: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(plane, TokenFile(token_file))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://kvwatt") as client:
        yield client
