"""The description and the behaviour agree: schemathesis calls every operation of a daemon's real interface
with what the schema allows and with what it does not."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from fake_plane import TOKEN
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from token_files import opened, write_tokens

from kvwattd.api.app import create_app
from kvwattd.config import load_config
from kvwattd.control import Control
from kvwattd.loop import Daemon
from kvwattd.reload import Reloader
from kvwattd.settings import SettingsFile

EXAMPLES = 25  # for each operation
FOLDER = Path(tempfile.mkdtemp(prefix="kvwatt-openapi-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
CONFIG = f"""
[daemon]
mode = "off"
state_dir = "{FOLDER}/state"
[model]
path = "{FOLDER}/model"
[slo.tbt]
limit_s = 0.1
[[instance]]
name = "0"  # what schemathesis tries first
url = "http://127.0.0.1:9"
gpus = ["0"]
"""


def application() -> FastAPI:
    """A daemon that does not tick, and its interface."""
    path = FOLDER / "kvwatt.toml"
    path.write_text(CONFIG)
    daemon = Daemon(load_config(path), settings=SettingsFile(FOLDER / "settings.json"))
    access = opened(write_tokens(FOLDER / "tokens.toml"), "token")
    return create_app(Control(daemon, access, Reloader(path, daemon)), access)


SCHEMA = schemathesis.openapi.from_asgi("/api/v1/openapi.json", application())


@SCHEMA.hook
def filter_case(_: Any, case: Any) -> bool:
    """An empty list or object leaves no trace in a URL: what was meant as invalid would be valid."""
    return not any(value in ([], {}) for value in (case.query or {}).values())


# The probes answer 503 by intention, this daemon does not tick, and events go on for 20 s; they have tests of
# their own.
@SCHEMA.exclude(path=["/healthz", "/readyz", "/api/v1/events"]).parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(case: Any) -> None:
    """No server error; status, content type and body of every answer are those of the description."""
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})
