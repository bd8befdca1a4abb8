"""Windows of one instance, for the energy model. The loop only adds numbers up; models are the worker's."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvwatt.energy_learning import WindowRing
from kvwatt.state import EngineSnapshot, GpuSample
from kvwattd.energy_windows import EngineFacts, WindowBuilder


class EnergyLearner:
    """Feed `on_page` with accepted pages and `on_gpu` with readings of all GPUs of the instance."""

    def __init__(self) -> None:
        self.ring = WindowRing()
        self._builder: WindowBuilder | None = None
        self._of: tuple[int, int, float | None] | None = None

    @property
    def dropped(self) -> int:
        """Windows that could not be told of since the engine's shape last changed."""
        return self._builder.dropped if self._builder is not None else 0

    def on_page(
        self, page: EngineSnapshot, tp: int, max_num_batched_tokens: int, power_cap_w: float | None = None
    ) -> None:
        """A page. Another shape of the engine, or another power cap of its GPUs together, begins anew; what
        was kept stays."""
        of = tp, max_num_batched_tokens, power_cap_w
        if self._builder is None or self._of != of:
            self._of = of
            cap_w = power_cap_w if power_cap_w is not None else math.nan
            self._builder = WindowBuilder(EngineFacts(tp, max_num_batched_tokens, cap_w))
        self._builder.on_page(page)

    def on_gpu(self, samples: Mapping[str, GpuSample]) -> None:
        """Readings of the whole group; a window that is over is kept."""
        closed = self._builder.on_gpu(samples) if self._builder is not None else None
        if closed is not None:
            self.ring.add(closed.row, closed.energy_j)
