"""The daemon's own command line, whose event loop a test can stop: SIGUSR1 blocks it for $STALL_S seconds."""

from __future__ import annotations

import os
import signal
import sys
import time

STALL_ENV = "STALL_S"


def _block(number: int, frame: object) -> None:
    time.sleep(float(os.environ[STALL_ENV]))


if __name__ == "__main__":
    from kvwattd.cli import main

    signal.signal(signal.SIGUSR1, _block)
    sys.argv[0] = "kvwatt"
    main()
