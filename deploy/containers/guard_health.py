"""Exit status 0 while the guard answers, 1 otherwise. Argument: its socket."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import GuardError, Role

DEADLINE_S = 1.5


async def answers(path: Path) -> bool:
    client = GuardClient(path, timeout_s=DEADLINE_S)
    try:
        await client.connect(Role.STATUS)
        await client.status()
    except GuardError as error:
        sys.stderr.write(f"{error}\n")
        return False
    finally:
        await client.close()
    return True


if __name__ == "__main__":
    place = sys.argv[1] if len(sys.argv) > 1 else "/run/kvwatt/guard.sock"
    raise SystemExit(0 if asyncio.run(answers(Path(place))) else 1)
