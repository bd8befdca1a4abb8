"""Random engine histories: shapes that are tight on purpose, requests that come and are aborted."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from kvwatt.state import EngineShape
from kvwatt_sim.engine import Request

STEP_S = 0.25  # exact in binary, so that times can be compared for equality


@dataclass(frozen=True)
class Scenario:
    shape: EngineShape
    hit_ratio: float
    requests: tuple[tuple[int, Request], ...]  # (step before which it is added, request)
    aborts: tuple[tuple[int, str, bool], ...]  # (step, id, in the middle of the step)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    block_size = draw(st.sampled_from((1, 2, 4, 16)))
    shape = EngineShape(
        block_size=block_size,
        num_blocks=draw(st.integers(3, 40)),
        max_num_seqs=(seqs := draw(st.integers(1, 6))),
        max_num_batched_tokens=seqs + draw(st.integers(0, 40)),
    )
    count = draw(st.integers(1, 14))
    requests = tuple(_request(draw, index, shape.kv_capacity_tokens) for index in range(count))
    aborted = draw(st.lists(st.integers(0, count - 1), max_size=3, unique=True))
    aborts = tuple((draw(st.integers(0, 40)), f"r{index}", draw(st.booleans())) for index in aborted)
    ordered = tuple(sorted(requests, key=lambda item: item[0]))
    return Scenario(shape, draw(st.sampled_from((0.0, 0.5, 1.0))), ordered, aborts)


def _request(draw: st.DrawFn, index: int, room: int) -> tuple[int, Request]:
    total = draw(st.integers(2, room + 1))
    output = draw(st.integers(1, min(total - 1, 60)))
    prompt = min(total - output, 120)
    longer = draw(st.integers(0, 5))
    max_tokens = output if longer else draw(st.sampled_from((None, output + 1)))
    step = draw(st.integers(0, 20))
    return step, Request(f"r{index}", step * STEP_S, prompt, output + longer, max_tokens)
