"""Waits as a product of matrices: what each request by itself would be told."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import model, shape, traffic

from kvwatt.outlook import TTFT_RAMP, expected_misses, waits
from kvwatt.outlook_cohort import AGE, Cohort, cohort
from kvwatt.outlook_speeds import FloatArray, Speeds, speeds
from kvwatt.projection import KnownLengths
from kvwatt.state import EngineState, RequestState, Slo, SloTarget

NOW_S = 500.0
BUSY = traffic(arrival_per_s=2.0)
COLUMNS = np.arange(0, len(model().clocks_mhz), 8)
LIMITS = Slo(ttft=SloTarget(2.0), e2e=SloTarget(20.0))

running = st.builds(
    lambda age, produced: RequestState(NOW_S - age - 1.0, 500, 500, produced, first_token_s=NOW_S - age),
    st.floats(0.0, 30.0),
    st.integers(1, 300),
)
preempted = st.builds(
    lambda age, produced: RequestState(NOW_S - age - 1.0, 500, 0, produced, first_token_s=NOW_S - age),
    st.floats(0.0, 30.0),
    st.integers(1, 300),
)
waiting = st.builds(
    lambda age, prompt: RequestState(NOW_S - age, prompt, 0, 0), st.floats(0.0, 5.0), st.integers(1, 3000)
)
engines = st.tuples(
    st.lists(running, max_size=20),
    st.lists(preempted, max_size=2),
    st.lists(waiting, max_size=8),
    st.booleans(),
)


def first_s(those: Cohort, s: Speeds, column: int, i: int) -> float:
    """Until the first token: prompts ahead, or the KV cache that must become free."""
    token_s, decode_s = float(s.token_s[column]), float(s.decode_s[column])
    prompts_s = float(those.ahead_tokens[i]) * (token_s + decode_s / shape().max_num_batched_tokens)
    if those.kv_wait_tokens is None or those.decoding <= 0:
        return prompts_s
    freed = those.decoding * max(those.kv_each_tokens / max(BUSY.output_mean_tokens, 1.0) - 1.0, 0.1)
    return max(prompts_s, float(those.kv_wait_tokens[i]) / freed * float(s.tbt_s[column]))


def one_by_one(those: Cohort, s: Speeds, total: FloatArray, column: int) -> tuple[float, float, float]:
    """Misses of TTFT and E2E at one clock, and the weight of those whose end is too close to tell."""
    ttft = e2e = edge = 0.0
    low_s, high_s = (2.0 * share for share in TTFT_RAMP)
    for i, weight in enumerate(those.weight.tolist()):
        wait_s, age_s = first_s(those, s, column, i), float(those.terms[AGE, i])
        if not those.started[i]:
            ttft += weight * min(max((wait_s + age_s - low_s) / (high_s - low_s), 0.0), 1.0)
        stall_s = float(those.behind_tokens[i] * s.token_s[column])
        room = max(20.0 - age_s - wait_s - stall_s, 0.0) / float(s.tbt_s[column])
        left = float(total[i] - those.requests.produced[i])
        e2e += weight * (room < left or room == 0.0)
        edge += weight * (abs(room - left) < 1e-6 or room < 1e-6)
    return ttft, e2e, edge


@settings(max_examples=60, deadline=None)
@given(engines, st.integers(1, 400))
def test_the_product_tells_each_request_what_it_waits(
    engine: tuple[list[RequestState], list[RequestState], list[RequestState], bool], more: int
) -> None:
    """Whoever decodes, was preempted or waits, with the cache free or full."""
    decodes, lost, queue, full = engine
    inside = (*decodes, *lost, *queue)
    used = float(shape().kv_capacity_tokens) if full else 700.0 * len(decodes)
    state = EngineState(NOW_S, len(decodes), len(lost) + len(queue), used, inside)
    those = cohort(NOW_S, state, BUSY, shape(), 0.5)
    total = those.requests.produced + more
    pace = speeds(model(), max(len(inside), 1), those.kv_each_tokens, BUSY, shape(), 1.0)
    wait = waits(those, pace, COLUMNS, BUSY, shape().max_num_batched_tokens)
    ttft, e2e, _ = expected_misses(those, pace, COLUMNS, wait, KnownLengths(total), LIMITS, 0.0)
    alone = np.array([one_by_one(those, pace, total, column) for column in COLUMNS])
    worst = np.maximum.accumulate(alone[::-1], axis=0)[::-1]
    assert np.allclose(ttft, worst[:, 0], rtol=1e-9, atol=1e-9)
    assert (np.abs(e2e - worst[:, 1]) <= worst[:, 2] + 1e-9).all()
