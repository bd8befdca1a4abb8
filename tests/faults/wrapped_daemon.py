"""The daemon's own command line with two signals for tests.

SIGUSR1 blocks its event loop for $STALL_S seconds; SIGUSR2 writes the number of its tasks to $TASKS_FILE.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

STALL_ENV, TASKS_ENV = "STALL_S", "TASKS_FILE"


def _block(number: int, frame: object) -> None:
    time.sleep(float(os.environ[STALL_ENV]))


def _count_tasks(number: int, frame: object) -> None:
    Path(os.environ[TASKS_ENV]).write_text(str(len(asyncio.all_tasks(asyncio.get_running_loop()))))


if __name__ == "__main__":
    from kvwattd.cli import main

    signal.signal(signal.SIGUSR1, _block)
    signal.signal(signal.SIGUSR2, _count_tasks)
    sys.argv[0] = "kvwatt"
    main()
