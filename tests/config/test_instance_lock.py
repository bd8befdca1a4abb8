"""One daemon per state folder, whatever became of the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvwattd.instance_lock import Locked, only_daemon

HOLDER = """
import sys, time
from pathlib import Path
from kvwattd.instance_lock import only_daemon
with only_daemon(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def refused(state: Path, told: str) -> None:
    with pytest.raises(Locked, match=told), only_daemon(state):
        pass


def test_the_second_is_refused_by_folder_and_process_until_the_first_ends(tmp_path: Path) -> None:
    """The message names the folder, the process and what to do; afterwards the folder is free."""
    state = tmp_path / "state"
    with only_daemon(state):
        refused(state, rf"{state} .*process {os.getpid()}\); stop")
    with only_daemon(state):
        pass


def test_a_killed_daemon_leaves_no_lock(tmp_path: Path) -> None:
    """The kernel gives the lock back: no file has to be removed by hand."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        refused(tmp_path, f"process {holder.pid}")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with only_daemon(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The message names key and path."""
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "state", r"daemon\.state_dir .*accepted: a folder")


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    """Nobody makes the daemon write elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "daemon.lock").symlink_to(victim)
    refused(tmp_path, "Too many levels of symbolic links")
    assert victim.read_text() == "kept"
