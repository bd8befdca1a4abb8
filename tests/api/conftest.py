from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fake_plane import FakePlane
from token_files import in_process, opened, write_tokens

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens.toml")


@pytest.fixture
def access(token_file: Path) -> Access:
    return opened(token_file)


@pytest.fixture
async def client(plane: FakePlane, access: Access) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(create_app(plane, access)) as client:
        yield client
