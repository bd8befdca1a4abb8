"""Stands in for `systemctl enable --now UNIT` where there is no systemd.

It starts what the unit starts and returns when that says that it is ready (sd_notify), as a unit of
Type=notify does. FIRST_RUN_FOLDER is where guard.toml lies, and where logs and process ids go.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

READY_S = 120.0


def supervise(folder: Path, unit: str) -> None:
    """Run the unit's program to its end and take its notifications."""
    programs = {
        "kvwatt-guard": ["kvwattd.guard", "--config", str(folder / "guard.toml")],
        "kvwatt": ["kvwattd", "run"],
    }
    address = folder / f"{unit}.notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, (folder / f"{unit}.log").open("ab") as log:
        told.bind(str(address))
        told.settimeout(0.2)
        process = subprocess.Popen(
            [sys.executable, "-m", *programs[unit]],
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
            stdout=log,
            stderr=log,
        )
        (folder / f"{unit}.pid").write_text(str(process.pid))
        while process.poll() is None:
            try:
                if b"READY=1" in told.recv(4096):
                    (folder / f"{unit}.ready").touch()
            except TimeoutError:
                pass


def main() -> int:
    folder = Path(os.environ["FIRST_RUN_FOLDER"])
    if sys.argv[1] == "supervise":
        supervise(folder, sys.argv[2])
        return 0
    verb, now, unit = sys.argv[1:]
    assert (verb, now) == ("enable", "--now")
    command = [sys.executable, __file__, "supervise", unit]
    nothing = subprocess.DEVNULL
    started = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    end_s = time.monotonic() + READY_S
    while not (folder / f"{unit}.ready").exists():
        if started.poll() is not None or time.monotonic() > end_s:
            print(f"{unit} is not ready")
            return 1
        time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
