"""Who may talk to a guard, whose word its configuration is, and how fast it listens."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard_stage import PATIENCE_S, UUIDS, GuardStage
from hypothesis import given
from hypothesis import strategies as st

from kvwattd.guard.client import GuardClient
from kvwattd.guard.config import ConfigError, load
from kvwattd.guard.connection import Pace
from kvwattd.guard.peers import Allowed, Peer, ids

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# Says hello over a socket that it is given, as whoever it is made to be.
STRANGER = """
import os, socket, sys
path, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.chdir(os.path.dirname(path))
os.setgroups([gid])
os.setresgid(65534, 65534, 65534)
os.setresuid(uid, uid, uid)
with socket.socket(socket.AF_UNIX) as channel:
    channel.connect(os.path.basename(path))
    channel.sendall(b'{"id":1,"op":"hello","v":2,"role":"control"}\\n')
    print(channel.makefile().readline())
    channel.sendall(b'{"id":2,"op":"resume","gpus":["%s"]}\\n' % sys.argv[4].encode())
    print(channel.makefile().readline())
"""


def hello_as(stage: GuardStage, uid: int, gid: int) -> str:
    stage.socket.chmod(0o666)  # so that the guard's own list is what refuses
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STRANGER, str(stage.socket), str(uid), str(gid), UUIDS[0]],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@as_root
async def test_only_users_and_groups_on_the_list(open_folder: Path, stage: GuardStage) -> None:
    """Others are answered `not_allowed`, by the kernel's word on who they are; members are served."""
    stage.socket = open_folder / "guard.sock"
    config = stage.folder / "guard.toml"
    config.write_text("users = [12345]\ngroups = [23456]\n")
    await stage.start("--config", str(config))
    stranger = await asyncio.to_thread(hello_as, stage, NOBODY, NOBODY)
    assert '"not_allowed"' in stranger and f"uid {NOBODY}" in stranger
    for uid, gid in ((12345, NOBODY), (NOBODY, 23456)):
        member = await asyncio.to_thread(hello_as, stage, uid, gid)
        assert '"ok":true' in member.splitlines()[0]
        assert "resume is root's to say" in member


@given(st.integers(1, 10**6), st.frozensets(st.integers(0, 10**6), max_size=5))
def test_who_is_admitted(uid: int, gids: frozenset[int]) -> None:
    """Exactly root, the guard's own user, listed users and members of listed groups."""
    peer = Peer(1, uid, gids)
    own = uid == os.geteuid()
    assert Allowed().admits(peer) is own
    assert Allowed(frozenset({uid})).admits(peer)
    assert Allowed(gids=frozenset({5})).admits(peer) is (own or 5 in gids)
    assert Allowed().admits(Peer(1, 0, frozenset({1})))


def test_names_and_numbers() -> None:
    """Users and groups are given either way."""
    assert ids(["root", "7"], ["8"]) == Allowed(frozenset({0, 7}), frozenset({8}))


@pytest.mark.parametrize(("place", "mode"), [("file", 0o664), ("file", 0o606), ("folder", 0o775)])
def test_a_configuration_others_may_write_is_refused(tmp_path: Path, place: str, mode: int) -> None:
    """Neither the file nor its folder may be writable for group or others."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    path = folder / "guard.toml"
    path.write_text("")
    assert load(path) == {}
    (path if place == "file" else folder).chmod(mode)
    with pytest.raises(ConfigError, match=f"mode of .* = {mode:04o}: expected writable by its owner only"):
        load(path)


@as_root
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_configuration_of_somebody_else_is_refused(tmp_path: Path, place: str) -> None:
    """The daemon's user must not own what bounds the daemon."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    path = folder / "guard.toml"
    path.write_text("")
    os.chown(path if place == "file" else folder, NOBODY, -1)
    with pytest.raises(ConfigError, match=f"uid {NOBODY}: expected root"):
        load(path)


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=200), st.floats(1, 100), st.integers(1, 20))
def test_pace(gaps_s: list[float], per_s: float, burst: int) -> None:
    """However messages come, no more than burst + rate x time are taken by any moment."""
    pace, now_s = Pace(per_s, burst), 0.0
    taken_s = []
    for gap_s in gaps_s:
        now_s += gap_s
        now_s += pace.wait_s(now_s)
        taken_s.append(now_s)
    for n, at_s in enumerate(taken_s, 1):
        assert n <= burst + per_s * (at_s - taken_s[0]) * (1 + 1e-9) + 1e-6


async def test_a_flood_waits_and_harms_nobody(stage: GuardStage) -> None:
    """Two thousand requests at once are answered at the permitted pace; the controller is served."""
    await stage.start()
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    reader, writer = await asyncio.open_unix_connection(stage.socket)
    writer.write(b'{"id":1,"op":"hello","v":2,"role":"status"}\n')
    writer.write(b'{"id":2,"op":"status"}\n' * 2000)
    for _ in range(10):
        await client.renew()
        await asyncio.sleep(0.05)
    assert b'"ok":true' in await reader.readline()
    writer.transport.abort()
    await client.close()
