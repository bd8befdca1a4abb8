"""Small traces and recordings as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kvwatt.state import Slo, SloTarget
from kvwatt_sim.replay.kvwatt_controller import gpu_info
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import plant
from kvwatt_sim.replay.told import WALL_S, Told
from kvwatt_sim.traces import TraceRequest
from kvwatt_sim.workload import generate
from kvwattd.recording.lines import Line, encode
from kvwattd.recording.taking import Taking

SLO = Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0))


def mooncake(path: Path, seconds: float = 240.0) -> Path:
    """Four minutes of the built-in workload in Mooncake's format."""
    path.write_text("".join(_line(r) for r in generate(6.0, seconds, seed=0)))
    return path


def _line(r: TraceRequest) -> str:
    row = {
        "timestamp": round(1000 * r.arrival_s),
        "input_length": r.prompt_tokens,
        "output_length": r.output_tokens,
        "hash_ids": [],
    }
    return json.dumps(row) + "\n"


def recording(folder: Path, instances: Sequence[str] = ("a", "b"), seconds: float = 90.0) -> Path:
    """What the daemon would have recorded beside simulated L20s at driver default."""
    folder.mkdir(parents=True)
    card = plant("l20")
    lines: list[Line] = []
    for seed, name in enumerate(instances):
        taking, told = Taking(name, lines.append), Told()
        taking.on_shape(card.engine_shape(), "qwen", (gpu_info(card),), SLO, WALL_S)
        served = VirtualPlant(card, card.engine_shape(), generate(1.5, seconds, seed))
        poll = 0
        while not served.done:
            poll += 1
            served.advance(0.5 * poll)
            taking.on_finished(told.record(served).finished, WALL_S + served.now_s)
            taking.on_gpu({"GPU": served.sample("GPU")}, WALL_S + served.now_s)
    (folder / "kvwatt-2023-11-14.jsonl").write_bytes(b"".join(map(encode, lines)))
    return folder
