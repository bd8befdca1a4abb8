"""First process of the guard's container: does what systemd does for kvwatt-guard.service.

Starts the guard, kills it when it misses its watchdog, undoes after any end what its record names, and starts
it again, unless it cannot start as configured (exit status 2). Standard library only.

KVWATT_GUARD_GPUS=visible allows every GPU that the container was given, instead of those in guard.toml.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

log = logging.getLogger("guard-init")

# The same as in systemd/kvwatt-guard.service; a test compares them.
WATCHDOG_S = 3.0
START_S = 30.0
STOP_S = 10.0
RESTART_S = 0.2
EXIT_CONFIG = 2

STATE_FILE = Path("/var/lib/kvwatt-guard/state.json")
CONFIG = Path("/etc/kvwatt/guard.toml")
GUARD = [sys.executable, "-m", "kvwattd.guard"]
LIST_GPUS = """
import pynvml
pynvml.nvmlInit()
for index in range(pynvml.nvmlDeviceGetCount()):
    print(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
"""


class Init:
    """One guard at a time, until SIGTERM or SIGINT."""

    def __init__(self, arguments: list[str], state_file: Path) -> None:
        self._arguments = [*GUARD, *arguments, "--state-file", str(state_file)]
        self._notify = state_file.with_name("notify.sock")
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Exit status of the last guard."""
        os.umask(0o077)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            self._notify.unlink(missing_ok=True)
            channel.bind(str(self._notify))
            while True:
                status = self._life(channel)
                self._undo()
                if self._stopping or status == EXIT_CONFIG:
                    return status
                log.warning("the guard ended with status %d and is started again", status)
                time.sleep(RESTART_S)

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True
        if self._child is not None:
            self._child.terminate()

    def _life(self, channel: socket.socket) -> int:
        """One guard from start to end, killed where it is late."""
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._notify),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        self._child = child = subprocess.Popen(self._arguments, env=environment)
        if self._stopping:  # the signal came before there was a child to tell
            child.terminate()
        until_s, stop_by_s = time.monotonic() + START_S, None
        while child.poll() is None:
            if select.select([channel], [], [], 0.05)[0] and channel.recv(4096):
                until_s = time.monotonic() + WATCHDOG_S
            if self._stopping and stop_by_s is None:
                stop_by_s = time.monotonic() + STOP_S
            if time.monotonic() > (until_s if stop_by_s is None else stop_by_s):
                log.error("the guard gave no sign of life in time and is killed")
                child.kill()
                child.wait()
        return child.returncode

    def _undo(self) -> None:
        """Nothing to do after an orderly end: the record is empty then."""
        try:
            subprocess.run([*self._arguments, "--reset-recorded"], check=False, timeout=STOP_S)
        except subprocess.TimeoutExpired:
            log.error("what the record names could not be put back in time; the next start tries again")


def visible_gpus() -> list[str]:
    """`--gpu UUID` for each GPU of this container. Raises subprocess.SubprocessError."""
    found = subprocess.run(
        [sys.executable, "-c", LIST_GPUS], check=True, timeout=START_S, stdout=subprocess.PIPE, text=True
    )
    return [word for uuid in found.stdout.split() for word in ("--gpu", uuid)]


def main(arguments: list[str]) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(levelname)s: %(message)s")
    chosen = os.environ.get("KVWATT_GUARD_GPUS", "")
    if chosen not in ("", "visible"):
        log.error("KVWATT_GUARD_GPUS = %r: expected visible, or nothing: then guard.toml names them", chosen)
        return EXIT_CONFIG
    gpus: list[str] = []
    if chosen:
        try:
            gpus = visible_gpus()
        except subprocess.SubprocessError as error:
            log.error("KVWATT_GUARD_GPUS = visible: no GPU can be listed here: %s", error)
            return EXIT_CONFIG
    return Init([*(arguments or ["--config", str(CONFIG)]), *gpus], STATE_FILE).run()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
