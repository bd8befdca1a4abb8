"""A metrics page on which nothing has happened yet."""

from __future__ import annotations

from math import inf

from kvwatt.state import EngineSnapshot, Histogram

NONE = Histogram((inf,), (0.0,), 0.0, 0.0)
BLANK = EngineSnapshot(
    observed_s=0.0,
    model_name="m",
    engine="0",
    running=0,
    waiting=0,
    waiting_for_capacity=0,
    kv_usage=0.0,
    block_size=16,
    num_blocks=101,
    asleep=False,
    prompt_tokens_total=0.0,
    prompt_tokens_cached_total=0.0,
    generation_tokens_total=0.0,
    preemptions_total=0.0,
    requests_finished_total=0.0,
    iterations=NONE,
    prompt_lengths=NONE,
    generation_lengths=NONE,
    ttft_s=NONE,
    tbt_s=NONE,
    itl_s=NONE,
    e2e_s=NONE,
)
