"""A hardware card: the limits of a GPU, its laws, and the shape of one model's engine on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvwatt_sim.gpu import StepLaw
from kvwatt_sim.nvml.spec import GpuSpec, PowerLaw

if TYPE_CHECKING:  # the card itself runs where only kvwatt_sim is on the path
    from kvwatt.state import EngineShape


class CardError(ValueError):
    """A card that is missing, incomplete or inconsistent; names the key and what is accepted."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a number comes from: `how` is measured, fitted or assumed; `source` says from what."""

    how: str
    source: str


@dataclass(frozen=True, slots=True)
class Card:
    """One model on `tp` GPUs of one kind. `step` is the whole engine's, `power` is per GPU.

    `weights_bytes` and `kv_bytes_per_token` are per GPU as well; `num_blocks` is the engine's.
    `parked_w`: a GPU with no process on it. `provenance` has a row per number, keyed by its place
    in the file (`power.idle_w`, `engine.tp1.step.weights_s`).
    """

    name: str
    gpu_name: str
    arch: str
    model: str
    tp: int
    supported_mhz: tuple[int, ...]
    boost_mhz: int
    idle_mhz: int
    memory_total_bytes: int
    memory_clock_mhz: int
    power_cap_w: float
    min_cap_w: float
    max_cap_w: float
    parked_w: float
    switch_latency_s: float
    energy_update_s: float
    block_size: int
    num_blocks: int
    max_model_len: int
    weights_bytes: int
    kv_bytes_per_token: int
    power: PowerLaw
    step: StepLaw
    provenance: Mapping[str, Provenance] = field(hash=False)

    def gpu_spec(self, uuid: str, parks: bool = False) -> GpuSpec:
        """The simulated NVML's view of one of the GPUs; `parks`: it draws less while nobody uses it."""
        return GpuSpec(
            name=self.gpu_name,
            uuid=uuid,
            arch=self.arch,
            memory_total_bytes=self.memory_total_bytes,
            memory_clock_mhz=self.memory_clock_mhz,
            supported_mhz=self.supported_mhz,
            boost_mhz=self.boost_mhz,
            idle_mhz=self.idle_mhz,
            power_law=self.power,
            default_cap_w=self.power_cap_w,
            min_cap_w=self.min_cap_w,
            max_cap_w=self.max_cap_w,
            switch_latency_s=self.switch_latency_s,
            energy_update_s=self.energy_update_s,
            parked_w=self.parked_w if parks else 0.0,
        )

    def engine_shape(
        self, max_num_seqs: int = 256, max_num_batched_tokens: int = 2048, num_blocks: int | None = None
    ) -> EngineShape:
        """The engine's shape; `num_blocks` shrinks the KV cache for tests."""
        from kvwatt.state import EngineShape

        return EngineShape(
            block_size=self.block_size,
            num_blocks=self.num_blocks if num_blocks is None else num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            tp=self.tp,
        )
