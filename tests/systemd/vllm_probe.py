"""Runs inside a machine, in the daemon's own sandbox: orders for the systemd backend, answers as JSON.

Argument: a file with a JSON array of [call, member or command...]; "sh" answers a command's exit status.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kvwattd.instances.backend import BackendError
from kvwattd.instances.systemd import SystemdBackend

MEMBERS = ("a", "b-2", "broken", "deaf")


async def one(backend: SystemdBackend, call: str, arguments: list[str]) -> Any:
    if call == "sh":
        return subprocess.run(arguments, capture_output=True, check=False).returncode  # noqa: ASYNC221
    if call == "wait":
        member, wanted = arguments
        state = ""
        for _ in range(400):
            if (state := (await backend.states())[member]) == wanted:
                break
            await asyncio.sleep(0.05)
        return [state, backend.reasons.get(member, "")]
    if call == "processes":
        return {member: sorted(pids) for member, pids in (await backend.processes()).items()}
    if call == "states":
        return await backend.states()
    try:
        await getattr(backend, call)(*arguments)
    except BackendError as error:
        return [error.cause, error.detail]
    return "ok"


async def main() -> None:
    orders = Path(sys.argv[1]).read_text()  # noqa: ASYNC240
    backend = SystemdBackend(MEMBERS)
    print(json.dumps([await one(backend, call, rest) for call, *rest in json.loads(orders)]))
    await backend.close()


if __name__ == "__main__":
    asyncio.run(main())
