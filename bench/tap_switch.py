"""The tap, on or off by lot for every block of steps, for bench/tap.py. Loaded inside vLLM.

A block counts when all its steps gave a token to a full batch and to nobody else: the steps then do the same
work with and without the tap. Its log is read by the benchmark.
"""

from __future__ import annotations

import os
import random
import struct
import time

from kvwattd.vllm_plugin.tap import KvwattTap
from tap_switch_layout import BATCH, BLOCK, BLOCK_STEPS, BLOCKS_ENV


class SwitchedTap(KvwattTap):
    """Times every block from the first call of its first step to the first call of the next block."""

    def __init__(self, vllm_config: object, engine_indexes: list[int] | None = None, **more: object) -> None:
        super().__init__(vllm_config, engine_indexes, **more)
        self._log = os.open(os.environ[BLOCKS_ENV], os.O_WRONLY | os.O_APPEND)
        self._lot = random.Random(1)
        self._begin(0)

    def _begin(self, steps: int) -> None:
        self._on = self._lot.random() < 0.5
        self._steps, self._inside_s = steps, 0.0
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def record(self, scheduler_stats: object, iteration_stats: object, *args: object, **more: object) -> None:
        """One step, with the tap or without."""
        if getattr(iteration_stats, "num_generation_tokens", 0) != BATCH:
            self._begin(0)
        elif self._steps == BLOCK_STEPS:
            wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
            os.write(self._log, struct.pack(BLOCK, self._on, wall_s, cpu_s, self._inside_s))
            self._begin(1)
        elif self._steps == 0:
            self._begin(1)
        else:
            self._steps += 1
        if self._on:
            started_s = time.perf_counter()
            super().record(scheduler_stats, iteration_stats, *args, **more)
            self._inside_s += time.perf_counter() - started_s
