"""The log that the worker inside vLLM writes and bench/plant_real.py reads: one entry per engine step."""

from __future__ import annotations

STEPS_ENV = "KVWATT_BENCH_STEPS"
# Monotonic seconds at start and end; requests in the step; decodes, their KV tokens, prompt tokens, the
# context behind those; KV tokens in whole blocks; 1 where a request of the step was in an earlier one.
STEP = "<ddddddddd"
