"""A process that keeps a ledger: closes an interval every few milliseconds and says so, until it is killed.

    python ledger_player.py FILE FIRST PERIOD_S

Prints `closed N AT` when interval N was handed over (monotonic seconds), and `kept N` when the writer says
that N is on the disk.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ledger_rows import row

from kvwattd.ledger.compaction import DAY_MS, Keep
from kvwattd.ledger.writer import LedgerWriter

KEEP = Keep(10**4 * DAY_MS, 10**4 * DAY_MS, 10**5 * DAY_MS, 10**9)


def main() -> None:
    path, first, period_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    writer = LedgerWriter(path, KEEP, (round(time.time() * 1e3), "test", "00", "{}"))
    writer.start()
    number, kept = first, 0
    while True:
        writer.put(row(number, energy_mj=number))
        print(f"closed {number} {time.monotonic():.6f}", flush=True)
        number += 1
        until_s = time.monotonic() + period_s
        while time.monotonic() < until_s:
            if writer.status.written > kept:
                kept = writer.status.written
                print(f"kept {first + kept - 1}", flush=True)
            time.sleep(min(period_s / 20, 0.005))


if __name__ == "__main__":
    main()
