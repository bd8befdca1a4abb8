"""compose.yaml, the configurations in it and the Dockerfiles: that they fit each other and the program."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvwattd.config import parse_config
from kvwattd.guard.config import build

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTAINERS = DEPLOY / "containers"
# Of the compose specification, what the shipped file uses.
SERVICE = {
    *(
        "image",
        "build",
        "command",
        "restart",
        "depends_on",
        "ports",
        "volumes",
        "environment",
        "deploy",
        "user",
    ),
    *("network_mode", "read_only", "cap_drop", "cap_add", "security_opt", "pids_limit", "mem_limit", "tmpfs"),
    *("oom_score_adj", "stop_grace_period", "profiles", "ipc"),
}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


def test_every_key_and_file_is_known(services: dict[str, dict[str, Any]]) -> None:
    """Nothing misspelt; every mounted file and every volume exists; every port is on loopback."""
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    used = set()
    for service in services.values():
        assert service.keys() <= SERVICE
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for mount in service["volumes"]:
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
            elif not source.startswith("/"):
                used.add(source)
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert used == volumes.keys()


def test_privilege(services: dict[str, dict[str, Any]]) -> None:
    """The guard has one capability and no network, the daemon none and a user of its own."""
    guard, daemon = services["guard"], services["kvwatt"]
    assert guard["cap_add"] == ["SYS_ADMIN"] and guard["network_mode"] == "none"
    assert "cap_add" not in daemon and daemon["user"] == "8484:8484"
    for service in (guard, daemon):
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["utility"]


def test_configurations() -> None:
    """Both are accepted, agree on socket and user, and name what the Dockerfiles make."""
    daemon = parse_config(tomllib.loads((CONTAINERS / "kvwatt.toml").read_text()))
    values = tomllib.loads((CONTAINERS / "guard.toml").read_text())
    guard = build({**values, "gpus": ["GPU-1"]})
    assert daemon.guard.socket == guard.socket and guard.socket_mode == 0o660
    (uid,) = guard.allowed.uids
    text = (CONTAINERS / "daemon.Dockerfile").read_text()
    assert f"USER {uid}:{uid}" in text and f"--uid {uid}" in text
    assert f"USER 0:{uid}" in (CONTAINERS / "guard.Dockerfile").read_text()


@pytest.mark.parametrize("name", ["guard", "daemon"])
def test_dockerfiles(name: str) -> None:
    """A pinned base, no build tools in the last stage, a health check, and sources that the context has."""
    text = (CONTAINERS / f"{name}.Dockerfile").read_text()
    last = text[text.rindex("FROM ") :]
    assert re.search(r"^ARG BASE=\S+:(?!latest)\S+$", text, re.MULTILINE)
    assert not re.search(r"\b(pip|python3-venv|gcc|build-essential)\b", last)
    assert "HEALTHCHECK" in last and "USER " in last
    ignored = (CONTAINERS / f"{name}.Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (DEPLOY.parent / source).exists()
            assert any(source == one or source.startswith(f"{one}/") for one in kept), source
