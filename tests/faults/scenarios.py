"""Every fault that the daemon, the guard and their surroundings are put through."""

from __future__ import annotations

import scenarios_engine
import scenarios_gpu
import scenarios_inputs
import scenarios_process

SCENARIOS = (
    *scenarios_engine.SCENARIOS,
    *scenarios_gpu.SCENARIOS,
    *scenarios_inputs.SCENARIOS,
    *scenarios_process.SCENARIOS,
)
