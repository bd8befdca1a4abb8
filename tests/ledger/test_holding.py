"""When an instance is held at default: only in control, from slots drawn after a load was seen."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kvwatt.holdout import HELD, Arm, HoldoutParams
from kvwattd.ledger.holding import HoldoutRun

OFTEN = HoldoutParams(share=0.5, window_s=100.0, warmup_s=30.0, settle_s=20.0)
TICK_S = 1.0


def page(tokens: float) -> Any:
    return SimpleNamespace(prompt_tokens_total=tokens, generation_tokens_total=tokens)


def play(run: HoldoutRun, start_s: int, seconds: int, eligible: bool = True) -> list[Arm]:
    """An arm a second."""
    arms = []
    for at_s in range(start_s, start_s + seconds):
        held = run.hold(float(at_s), eligible, page(50.0 * at_s))
        assert held == (run.arm in HELD)
        arms.append(run.arm)
    return arms


def test_nothing_is_held_before_a_load_was_seen() -> None:
    """A whole slot passes in control first; its beginning settles."""
    arms = play(HoldoutRun(OFTEN, b"seed"), 0, 100)
    assert arms == [Arm.SETTLING] * 20 + [Arm.CONTROLLED] * 80


def test_a_window_warms_up_is_measured_and_settles() -> None:
    """Of two slots in a row one is held: 30 s warm-up, 70 s measured, then 20 s of control not counted."""
    arms = play(HoldoutRun(OFTEN, b"seed"), 0, 2000)
    begun = arms.index(Arm.WARMUP)
    assert begun % 100 == 0
    assert arms[begun : begun + 100] == [Arm.WARMUP] * 30 + [Arm.DEFAULT] * 70
    after = [i for i in range(begun, 2000 - 1) if arms[i] is Arm.DEFAULT and arms[i + 1] not in HELD]
    assert all(arms[i + 1 : i + 21] == [Arm.SETTLING] * 20 for i in after if i + 21 < 2000)
    held = sum(arm in HELD for arm in arms)
    assert 800 <= held <= 1100


@pytest.mark.parametrize("share", [0.0])
def test_a_share_of_nothing_counts_all_as_controlled(share: float) -> None:
    arms = play(HoldoutRun(replace(OFTEN, share=share), b"seed"), 0, 500)
    assert set(arms) == {Arm.SETTLING, Arm.CONTROLLED}


def test_losing_control_ends_a_window_at_once() -> None:
    """FAILSAFE, OVERRIDE, LEARNING, shadow: nothing is held, nothing counts; after them all begins anew."""
    run = HoldoutRun(OFTEN, b"seed")
    arms = play(run, 0, 1000)
    begun = 100 + next(i for i, arm in enumerate(arms[100:]) if arm is Arm.WARMUP)
    run = HoldoutRun(OFTEN, b"seed")
    play(run, 0, begun + 10)
    assert run.arm is Arm.WARMUP
    assert play(run, begun + 10, 5, eligible=False) == [Arm.NONE] * 5
    assert run.slot is None
    assert play(run, begun + 15, 100) == [Arm.SETTLING] * 20 + [Arm.CONTROLLED] * 80


def test_an_engine_that_began_anew_gives_no_load() -> None:
    """Counters that went back: no slot is drawn from them."""
    run = HoldoutRun(OFTEN, b"seed")
    for at_s in range(2000):
        run.hold(float(at_s), True, page(1e6 - 50.0 * at_s))
    assert run.windows == 0


def test_the_seed_decides() -> None:
    def windows(seed: bytes) -> list[Arm]:
        return play(HoldoutRun(OFTEN, seed), 0, 3000)

    assert windows(b"one") == windows(b"one")
    assert windows(b"one") != windows(b"two")
