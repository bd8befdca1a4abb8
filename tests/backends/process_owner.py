"""Owners of process instances that are killed at a chosen line of the backend. Run as a program.

Reads jobs from standard input, one JSON array a line: folder, what to do ("start" or "stop"), and the line
event of `kvwattd.instances` at which to die (0: never). Each runs in a fork; answers with the number of line
events that it got to, and whether it was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from kvwattd.instances import process
from kvwattd.instances.process import Launch, ProcessBackend

MEMBER = "m"
LAUNCH = Launch(("sleep", "1000"))
PASSES = 3
PACKAGE = str(Path(process.__file__).parent)


class Dying:
    """Counts the lines of the package that are run, in any thread, and kills this process at one of them."""

    def __init__(self, at: int) -> None:
        self.seen = 0
        self._at = at
        self._times: dict[tuple[str, int], int] = {}

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        line = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and self._times.get(line, 0) < PASSES:  # loops over /proc would drown the rest
            self._times[line] = self._times.get(line, 0) + 1
            self.seen += 1
            if self.seen == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


async def act(folder: Path, what: str, dying: Dying) -> None:
    backend = ProcessBackend(folder, {MEMBER: LAUNCH})
    threading.settrace(dying.trace)
    sys.settrace(dying.trace)
    await (backend.start(MEMBER) if what == "start" else backend.stop(MEMBER))
    await backend.states()


def in_a_fork(folder: Path, what: str, at: int) -> tuple[int, bool]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        dying = Dying(at)
        asyncio.run(act(folder, what, dying))
        os.write(writing, str(dying.seen).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(pid, 0)[1]
    seen = os.read(reading, 32)
    os.close(reading)
    return int(seen or at), os.WIFSIGNALED(status)


def main() -> None:
    for line in sys.stdin:
        folder, what, at = json.loads(line)
        print(json.dumps(in_a_fork(Path(folder), what, at)), flush=True)


if __name__ == "__main__":
    main()
