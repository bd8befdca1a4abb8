"""Bounded exploration: one rung at a time, back at the first sign, never where a promise could break."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from blank_page import BLANK

from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.profiler.excursions import LONGEST_REST_S, Excursions, Guarded
from kvwattd.profiler.windows import Window

CLOCKS = (2000, 1600, 1200, 800)
GUARDED = Guarded(tbt_s=0.1, ttft_s=1.0)


def histogram(total: float, count: float) -> Histogram:
    return Histogram((math.inf,), (count,), total, count)


def snapshot(observed_s: float, itl_s: float) -> EngineSnapshot:
    """After `observed_s` seconds of four sequences with this time between tokens."""
    tokens = 4 * observed_s / itl_s
    return replace(
        BLANK,
        observed_s=observed_s,
        running=4,
        kv_usage=0.1,
        num_blocks=1001,
        prompt_tokens_total=1000.0,
        generation_tokens_total=tokens,
        iterations=histogram(tokens, tokens / 4),
        itl_s=histogram(itl_s * tokens, tokens),
    )


def window(itl_s: float = 0.02) -> Window:
    return Window(snapshot(10.0, itl_s), snapshot(11.0, itl_s), 100.0, 1.0, 2000.0)


def test_it_goes_one_rung_below_what_is_safe() -> None:
    """Never two rungs at once, however calm it is."""
    excursions = Excursions(CLOCKS)
    deepest = []
    for _ in range(8):
        rung = excursions.next(GUARDED, window())
        assert rung is not None
        assert rung <= excursions.safe + 1
        excursions.came_back(rung, well=True)
        deepest.append(excursions.safe)
    assert deepest[:3] == [1, 2, 3]


def test_a_sign_takes_a_rung_back_and_doubles_the_rest() -> None:
    """After trouble it waits longer and starts higher; the rest is bounded."""
    excursions = Excursions(CLOCKS, rest_s=1.0, safe=2)
    rests = [excursions.came_back(excursions.safe + 1, well=False) for _ in range(2)]
    assert rests == [2.0, 4.0]
    assert excursions.safe == 2
    assert excursions.came_back(1, well=False) == 8.0
    assert excursions.safe == 0
    for _ in range(10):
        assert excursions.came_back(1, well=False) <= LONGEST_REST_S


def test_nothing_is_tried_where_the_promise_could_break() -> None:
    """30 ms between tokens may become 75 ms at 800 MHz but 45 ms at most at 1333: only that much is tried."""
    assert GUARDED.allows(window(0.03), 2000, 800)
    assert not GUARDED.allows(window(0.04), 2000, 800)
    assert Excursions(CLOCKS, safe=3).next(GUARDED, window(0.08)) is None
    assert Excursions(CLOCKS, safe=3).next(GUARDED, window(0.06)) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"waiting": 2}, "2 requests wait"),
        ({"preemptions_total": 1.0}, "preempted"),
        ({"kv_usage": 0.9}, "90 % full"),
        ({"ttft_s": histogram(1.9, 2)}, "TTFT 0.950"),
        ({"itl_s": histogram(60.0, 150)}, "TBT"),
    ],
)
def test_every_sign_of_trouble_is_seen(changed: dict[str, object], message: str) -> None:
    """A queue, a preemption, a full cache or a latency near its limit ends an excursion and forbids one."""
    calm = window()
    after = replace(calm.after, **changed)  # type: ignore[arg-type]
    if "itl_s" in changed:
        calm = replace(calm, before=replace(calm.before, itl_s=histogram(0.0, 0.0)))
    troubled = replace(calm, after=after)
    sign = GUARDED.sign(troubled)
    assert sign is not None
    assert message in sign
    assert Excursions(CLOCKS).next(GUARDED, troubled) is None
    assert GUARDED.sign(window()) is None
