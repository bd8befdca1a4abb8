"""What the scheduler inside vLLM is told of budget and promises, from the model and the traffic."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import model as trained
from worlds import shape, traffic

from kvwatt.compiled import CompiledModel
from kvwatt.state import Slo, SloTarget
from kvwattd.scheduler_link.message import AtClock, budget_of, promises_of


@pytest.fixture(scope="module")
def model() -> CompiledModel:
    """Of the simulated card."""
    return trained()


def test_the_budget_grows_with_the_rate_and_fits_the_pool(model: CompiledModel) -> None:
    """More requests a second hold more blocks; a slower clock lets each stay longer; never above the pool."""
    told = [budget_of(traffic(rate), model, None, shape(), Slo()) for rate in (0.2, 1.0, 4.0, 1000.0)]
    blocks = [b.in_use_blocks for b in told if b is not None]
    assert len(blocks) == 4
    assert blocks == sorted(blocks)
    assert 1 <= blocks[0] < blocks[2]
    assert blocks[-1] <= shape().num_blocks - 1
    slow = budget_of(traffic(1.0), model, model.clocks_mhz[0], shape(), Slo())
    assert slow is not None and slow.in_use_blocks >= blocks[1]
    assert budget_of(traffic(0.0), model, None, shape(), Slo()) is None


def test_tbt_bounds_the_sequences(model: CompiledModel) -> None:
    """Without the promise as many as the engine takes."""
    step = AtClock(model, None)
    limit_s = 1.2 * step.step_s(8, 8 * 1000.0)
    bound = budget_of(traffic(1.0), model, None, shape(), Slo(tbt=SloTarget(limit_s)))
    free = budget_of(traffic(1.0), model, None, shape(), Slo())
    assert bound is not None and free is not None
    assert 1 <= bound.max_seqs < free.max_seqs == shape().max_num_seqs


def test_promises_price_a_step_about_as_the_model_does(model: CompiledModel) -> None:
    """Near half of a full engine within a tenth, and nothing without a limit."""
    assert promises_of(model, shape(), Slo(ttft=SloTarget(1.0))) is None
    told = promises_of(model, shape(), Slo(tbt=SloTarget(0.1), e2e=SloTarget(30.0)))
    assert told is not None
    assert (told.tbt_s, told.e2e_s) == (0.1, 30.0)
    batch, kv = shape().max_num_seqs / 2, shape().num_blocks * shape().block_size / 2
    for more_batch, more_kv, prompt in ((1.0, 1.0, 0.0), (0.8, 0.9, 0.0), (1.0, 1.0, 400.0)):
        b, k = batch * more_batch, kv * more_kv
        priced = told.step.base_s + told.step.request_s * b + told.step.kv_token_s * k
        priced += told.step.prompt_token_s * prompt
        assert priced == pytest.approx(AtClock(model, None).step_s(b, k, prompt), rel=0.1)
    assert np.isfinite(priced)
