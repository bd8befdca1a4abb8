"""`kvwatt run` as a process: what it refuses at start, and REST over TLS and a unix socket while it runs.

No GPU and no server is needed: the daemon then stays at driver default and says so.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from kvwattd.api.tokens import add_entry

TOKEN = "a-token-that-only-this-test-knows"
CONFIG = """
[daemon]
state_dir = "{folder}/state"
[api]
{api}
[guard]
socket = "{folder}/guard.sock"
[model]
path = "{folder}/model"
[slo.tbt]
limit_s = 0.1
[[instance]]
name = "chat"
url = "http://127.0.0.1:9"
gpus = ["0"]
"""
SECURE = """
port = 0
socket = "{folder}/api.sock"
socket_mode = "0600"
token_file = "{folder}/tokens.toml"
read_access = "token"
tls_cert = "{folder}/tls.crt"
tls_key = "{folder}/tls.key"
"""


def configured(folder: Path, api: str) -> Path:
    path = folder / "kvwatt.toml"
    path.write_text(CONFIG.format(folder=folder, api=api.format(folder=folder)))
    return path


def run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvwattd", "run", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)


def eventually(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 90.0
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("api", "told"),
    [
        ('host = "0.0.0.0"', "api.host: got '0.0.0.0'"),
        ('port = 0\ntoken_file = "{folder}/kvwatt.toml"', "may be read by others"),
        ('port = 0\ntls_cert = "{folder}/none"\ntls_key = "{folder}/none"', "api.tls_cert"),
        ('port = 0\nsocket = "{folder}/no/such/folder.sock"', "api.socket"),
    ],
)
def test_what_is_not_safe_is_refused_at_start(tmp_path: Path, api: str, told: str) -> None:
    """Exit code 2, the key at fault and the next step; nothing is served meanwhile."""
    done = run(configured(tmp_path, api))
    assert done.returncode == 2, done.stderr
    assert told in done.stderr and "\nnext: " in done.stderr
    assert "Traceback" not in done.stderr and "REST and metrics" not in done.stderr


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    """The address and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(configured(tmp_path, f"port = {taken.getsockname()[1]}"))
    assert done.returncode == 2 and "free port at api.host and api.port" in done.stderr


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextlib.contextmanager
def running(config: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The daemon, and its address."""
    command = [sys.executable, "-m", "kvwattd", "run", "--config", str(config)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            eventually(lambda: "REST and metrics at " in log.read_text() or process.poll() is not None)
            yield process, log.read_text().split("REST and metrics at ")[1].split()[0]
        finally:
            process.terminate()
            process.wait(90)


def trusting(folder: Path, url: str) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(folder / "tls.crt"))
    return httpx.Client(base_url=url, verify=context, trust_env=False, timeout=60)


def test_the_secured_daemon_from_outside(tmp_path: Path, log: Path) -> None:
    """TLS, tokens, unix socket, rotation by SIGHUP and audit log work together, and no token leaks."""
    certificate(tmp_path)
    add_entry(tmp_path / "tokens.toml", "operator", "control", TOKEN)
    auth = {"Authorization": f"Bearer {TOKEN}"}
    with running(configured(tmp_path, SECURE), log) as (process, url):
        said = []
        with trusting(tmp_path, url) as client:
            assert client.get("/api/v1/status").status_code == 401
            assert client.get("/metrics", headers=auth).status_code == 200
            said.append(client.put("/api/v1/mode", json={"mode": "off"}, headers=auth).text)
            said.append(client.get("/api/v1/audit", headers=auth).text)
            client.put("/api/v1/mode", json={"mode": "active"})
        certificate(tmp_path)
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "configuration: " in log.read_text())
        with trusting(tmp_path, url) as client:
            reloads = client.get("/api/v1/config", headers=auth).json()["reloads_total"]
        unix = httpx.HTTPTransport(uds=str(tmp_path / "api.sock"))
        with httpx.Client(transport=unix, base_url="http://localhost", timeout=60) as client:
            assert client.get("/api/v1/mode").status_code == 401
            assert client.get("/api/v1/mode", headers=auth).json() == {"mode": "off"}
    assert reloads == 1 and process.returncode == 0
    audit = (tmp_path / "state" / "audit.jsonl").read_text()
    assert [word in audit for word in ("operator", "anonymous", "SIGHUP")] == [True] * 3
    kept = [path.read_text() for path in (tmp_path / "state").glob("*.json*")]
    assert not [text for text in (*said, *kept, log.read_text()) if TOKEN in text]
    assert not (tmp_path / "api.sock").exists()
