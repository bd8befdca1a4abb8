"""The description and the behaviour agree: schemathesis calls every operation with what the schema allows and
with what it does not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from fake_plane import TOKEN, FakePlane
from hypothesis import HealthCheck, settings
from token_files import opened, write_tokens

from kvwattd.api.app import create_app

EXAMPLES = 25  # for each operation
FOLDER = tempfile.TemporaryDirectory()
APP = create_app(FakePlane(), opened(write_tokens(Path(FOLDER.name) / "tokens.toml"), "token"))
SCHEMA = schemathesis.openapi.from_asgi("/api/v1/openapi.json", APP)


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(case: Any) -> None:
    """No server error; status, content type and body of every answer are those of the description."""
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})
