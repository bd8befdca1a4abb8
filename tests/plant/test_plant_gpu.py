"""The laws of step time and power: shapes that the measurements show, on every card."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvwatt_sim import gpu
from kvwatt_sim.cards import Card, load, names

CARDS = [load("l20"), load("a100", 1), load("a100", 2), load("a100", 4), load("h200")]
LAW = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

cards = st.sampled_from(CARDS)
batches = st.integers(0, 256)
contexts = st.integers(1, 8192)
prompts = st.integers(0, 8192)
shares = st.floats(0.0, 1.0)


@st.composite
def clock_pairs(draw: st.DrawFn) -> tuple[Card, int, int]:
    """A card and two of its clocks, the lower first."""
    card = draw(cards)
    low, high = sorted(
        draw(st.lists(st.sampled_from(card.supported_mhz), min_size=2, max_size=2, unique=True))
    )
    return card, low, high


def test_every_card_is_covered() -> None:
    """The laws below run on every card there is."""
    assert {card.name for card in CARDS} == set(names())


@LAW
@given(clock_pairs(), batches, contexts, prompts)
def test_a_higher_clock_is_never_slower(
    pair: tuple[Card, int, int], batch: int, context: int, prompt: int
) -> None:
    """Step time falls with the clock, and by no more than the clock rises."""
    card, low, high = pair
    slow = gpu.step_time_s(card, low, batch, batch * context, prompt)
    fast = gpu.step_time_s(card, high, batch, batch * context, prompt)
    assert fast <= slow * (1 + 1e-12)
    assert slow <= fast * high / low * (1 + 1e-12)


@LAW
@given(cards, batches, contexts, prompts, contexts)
def test_more_work_takes_longer(card: Card, batch: int, context: int, prompt: int, before: int) -> None:
    """Another decode, another prompt token and a longer context each add time."""
    clock = card.boost_mhz
    base = gpu.step_time_s(card, clock, batch, batch * context, prompt, before)
    assert base > 0
    assert gpu.step_time_s(card, clock, batch + 1, batch * context, prompt, before) > base
    assert gpu.step_time_s(card, clock, batch, batch * context, prompt + 1, before) > base
    assert gpu.step_time_s(card, clock, batch, batch * context + 1, prompt, before) > base
    longer = gpu.step_time_s(card, clock, batch, batch * context, prompt, before + 1)
    assert longer > base if prompt else longer == base


@LAW
@given(cards, st.integers(1, 256), contexts, prompts, st.data())
def test_activity_is_a_share(card: Card, batch: int, context: int, prompt: int, data: st.DataObject) -> None:
    """Both activities are shares of the step, and a step always reads the weights."""
    clock = data.draw(st.sampled_from(card.supported_mhz))
    compute, memory = gpu.activity(card, clock, batch, batch * context, prompt)
    assert 0.0 < compute <= 1.0
    assert 0.0 < memory <= 1.0


@LAW
@given(clock_pairs(), shares, shares)
def test_power_rises_with_clock_and_activity(
    pair: tuple[Card, int, int], compute: float, memory: float
) -> None:
    """At equal activity a higher clock draws no less, at equal clock more activity draws no less."""
    card, low, high = pair
    assert gpu.power_w(card, low, compute, memory) <= gpu.power_w(card, high, compute, memory)
    busy = gpu.power_w(card, high, compute, memory)
    assert gpu.power_w(card, high, 0.0, 0.0) <= busy <= gpu.power_w(card, high, 1.0, 1.0)


@LAW
@given(cards, shares, shares, st.data())
def test_the_cap_leaves_the_highest_clock_that_fits(
    card: Card, compute: float, memory: float, data: st.DataObject
) -> None:
    """Under the cap the clock stays; above it, it is the highest supported one below the cap."""
    asked = data.draw(st.sampled_from(card.supported_mhz))
    got = gpu.capped_clock_mhz(card, asked, compute, memory)
    fitting = [
        clock
        for clock in card.supported_mhz
        if clock <= asked and gpu.power_w(card, clock, compute, memory) <= card.power_cap_w
    ]
    assert got == max(fitting, default=card.supported_mhz[0])


def test_the_cap_binds_on_the_l20() -> None:
    """Short prompts, compute- and memory-bound at once, run the L20 into its 275 W."""
    card = load("l20")
    compute, memory = gpu.activity(card, 2520, 0, 0, 256)
    clock = gpu.capped_clock_mhz(card, 2520, compute, memory)
    assert 2100 < clock < 2520
    assert gpu.power_w(card, clock, compute, memory) <= card.power_cap_w


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.name}-tp{card.tp}")
def test_small_batches_are_flat_and_prompts_follow_the_clock(card: Card) -> None:
    """Halving the clock costs a lone decode far less than half its speed, a long prompt nearly half."""
    half = card.boost_mhz / 2
    decode = gpu.step_time_s(card, half, 1, 1000, 0) / gpu.step_time_s(card, card.boost_mhz, 1, 1000, 0)
    prompt = gpu.step_time_s(card, half, 0, 0, 8192) / gpu.step_time_s(card, card.boost_mhz, 0, 0, 8192)
    assert decode < 1.25
    assert prompt > 1.9


def test_more_gpus_are_faster() -> None:
    """Tensor parallelism shortens steps, by less than the number of GPUs."""
    times = [gpu.step_time_s(load("a100", tp), 1410, 32, 32_000, 0) for tp in (1, 2, 4)]
    assert times[0] > times[1] > times[2] > times[0] / 4


def test_nonsense_parameters_are_refused() -> None:
    """A law with a negative or infinite parameter is refused by name."""
    law = load("l20").step
    numbers = {name: getattr(law, name) for name in law.__slots__}
    for name, value in (("weights_s", -1.0), ("kv_s_per_token", float("nan")), ("f_ref_mhz", 0)):
        with pytest.raises(ValueError, match=f"step law {name} = {value}"):
            gpu.StepLaw(**{**numbers, name: value})
