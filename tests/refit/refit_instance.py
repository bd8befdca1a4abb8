"""What a refit asks of an instance, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape

SHAPE = EngineShape(block_size=16, num_blocks=20_001, max_num_seqs=128, max_num_batched_tokens=2048)


@dataclass
class Slot:
    compiled: CompiledModel | None


@dataclass
class Instance:
    model: Slot
    name: str = "chat"

    def shape(self) -> EngineShape:
        return SHAPE
