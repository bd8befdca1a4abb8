"""TLS and the unix socket, over real connections."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
from pathlib import Path

import httpx
import pytest
from fake_plane import FakePlane
from fastapi import FastAPI
from token_files import AUTH, opened

from kvwattd.api.app import create_app
from kvwattd.api.listeners import ApiUnavailable, Tls
from kvwattd.api.server import ApiServer, Endpoints


def certificate(folder: Path) -> Tls:
    """A certificate of its own, made by openssl; written over an earlier one."""
    made = Tls(folder / "tls.crt", folder / "tls.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-days",
        "2",
    ]
    subprocess.run([*command, "-keyout", made.key, "-out", made.cert], check=True, capture_output=True)
    return made


def trusting(cert: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=60, verify=ssl.create_default_context(cafile=str(cert)))


def mode_of(path: Path) -> int:
    facts = path.stat()
    assert stat.S_ISSOCK(facts.st_mode)
    return stat.S_IMODE(facts.st_mode)


def spoil(path: Path) -> None:
    path.write_text("no certificate")


def copy(path: Path, suffix: str) -> Path:
    kept = path.with_suffix(suffix)
    kept.write_bytes(path.read_bytes())
    return kept


async def test_https_is_served_to_who_trusts_the_certificate(tmp_path: Path) -> None:
    """Reads and writes go over TLS; plain HTTP and strangers to the certificate get nothing."""
    tls = certificate(tmp_path)
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints(tls=tls))
    await server.start()
    try:
        assert server.url.startswith("https://127.0.0.1:")
        async with trusting(tls.cert) as client:
            assert (await client.get(f"{server.url}/api/v1/status")).status_code == 200
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{server.url}/healthz")
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://127.0.0.1:{server.port}/healthz")
    finally:
        await server.stop()


async def test_old_tls_versions_are_refused(tmp_path: Path) -> None:
    """TLS 1.1 and older get no connection."""
    tls = certificate(tmp_path)
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints(tls=tls))
    await server.start()
    old = ssl.create_default_context(cafile=str(tls.cert))
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=60, verify=old) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{server.url}/healthz")
    finally:
        await server.stop()


async def test_a_new_certificate_is_taken_up_without_a_restart_and_a_bad_one_is_not(tmp_path: Path) -> None:
    """New connections see the new certificate; a file that is none leaves the one before in use."""
    tls = certificate(tmp_path)
    old = copy(tls.cert, ".old")
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints(tls=tls))
    await server.start()
    try:
        certificate(tmp_path)
        new = copy(tls.cert, ".new")
        await server.renew_tls()
        for _ in range(2):
            async with trusting(new) as client:
                assert (await client.get(f"{server.url}/healthz")).status_code == 200
            spoil(tls.cert)
            with pytest.raises(ApiUnavailable, match=r"api\.tls_cert .*PEM"):
                await server.renew_tls()
        async with trusting(old) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{server.url}/healthz")
    finally:
        await server.stop()


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key"])
async def test_without_a_usable_certificate_nothing_is_served(tmp_path: Path, missing: str) -> None:
    """It never falls back to plain HTTP; the error names both keys of the configuration."""
    tls = certificate(tmp_path)
    spoil(tmp_path / missing)
    with pytest.raises(ApiUnavailable, match=r"api\.tls_cert.*api\.tls_key"):
        await ApiServer(FastAPI(), Endpoints(tls=tls)).start()


async def test_the_unix_socket_has_its_mode_and_vanishes_at_the_end(tmp_path: Path) -> None:
    """Beside TCP or alone; its callers read freely and need a token to change something."""
    path = tmp_path / "api.sock"
    access = opened(None)
    server = ApiServer(
        create_app(FakePlane(), access),
        Endpoints(None, socket=path, socket_mode=0o600),
    )
    await server.start()
    try:
        assert server.url == f"unix:{path}"
        assert mode_of(path) == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://any.name", timeout=60) as client:
            assert (await client.get("/api/v1/status")).status_code == 200
            refused = await client.put("/api/v1/mode", json={"mode": "off"}, headers=AUTH)
            assert refused.status_code == 403
    finally:
        await server.stop()
    assert not path.exists()


async def test_both_at_once(tmp_path: Path) -> None:
    """TCP with TLS and the unix socket without serve the same application."""
    tls, path = certificate(tmp_path), tmp_path / "api.sock"
    server = ApiServer(create_app(FakePlane(), opened(None)), Endpoints(tls=tls, socket=path))
    await server.start()
    try:
        async with trusting(tls.cert) as client:
            assert (await client.get(f"{server.url}/healthz")).status_code == 200
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            assert (await client.get("/healthz")).status_code == 200
    finally:
        await server.stop()


async def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    """Nobody answers there: it is taken away."""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = ApiServer(FastAPI(), Endpoints(None, socket=path))
    await server.start()
    await server.stop()


async def test_what_belongs_to_others_is_left_alone(tmp_path: Path) -> None:
    """A file, or a socket on which somebody listens, is refused by its path and stays."""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ApiUnavailable, match=r"api\.socket .*another process listens"):
            await ApiServer(FastAPI(), Endpoints(None, socket=path)).start()
    spoil(tmp_path / "file")
    with pytest.raises(ApiUnavailable, match=r"api\.socket .*something else"):
        await ApiServer(FastAPI(), Endpoints(None, socket=tmp_path / "file")).start()
    with pytest.raises(ApiUnavailable, match=r"api\.socket .*no-such-group"):
        await ApiServer(
            FastAPI(), Endpoints(None, socket=tmp_path / "new", socket_group="no-such-group")
        ).start()
