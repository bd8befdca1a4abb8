"""`python -m kvwatt_sim.sequences FOLDER FIRST COUNT STRIDE`: one worker of `run`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.sequences.play import ViolationError, play


async def main(folder: Path, seeds: range) -> dict[str, object]:
    steps: Counter[str] = Counter()
    violations: list[str] = []
    calls = 0
    with SimGpus.open(folder / "gpus") as gpus:
        for seed in seeds:
            began_s = gpus.now_s()
            with tempfile.TemporaryDirectory(dir=folder) as place:
                try:
                    steps.update(await play(seed, gpus, Path(place)))
                except ViolationError as error:
                    violations.append(str(error))
            calls += sum(call.t_s >= began_s for call in gpus.setter_log())
    return {"sequences": len(seeds), "steps": steps, "setter_calls": calls, "violations": violations}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # thousands of faults, all on purpose
    _, where, first, count, stride = sys.argv
    start, step = int(first), int(stride)
    result = asyncio.run(main(Path(where), range(start, start + int(count) * step, step)))
    print(json.dumps(result))  # noqa: T201
