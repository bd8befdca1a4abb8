"""Hardware cards: complete, with provenance, and refused with a clear word when they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvwatt_sim.cards import Card, CardError, load, names
from kvwatt_sim.cards.load import FOLDER, load_file

SIZES = [("l20", 1), ("a100", 1), ("a100", 2), ("a100", 4), ("h200", 1)]


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-tp{size[1]}")
def card(request: pytest.FixtureRequest) -> Card:
    name, tp = request.param
    return load(name, tp)


def test_the_cards_there_are() -> None:
    """The sizes tested here are those of the folder."""
    assert set(names()) == {name for name, _ in SIZES}


def test_every_number_says_where_it_comes_from(card: Card) -> None:
    """Each number of a card is measured, fitted or assumed, from a source in words."""
    assert len(card.provenance) == 13 + 8 + 5 + 11
    assert {row.how for row in card.provenance.values()} <= {"measured", "fitted", "assumed"}
    assert all(len(row.source) > 20 for row in card.provenance.values())


def test_the_l20_is_fitted() -> None:
    """The laws of the L20 come from measurements, not from assumptions."""
    rows = load("l20").provenance.items()
    assert {row.how for place, row in rows if place.startswith(("power.", "engine.tp1.step."))} == {"fitted"}


@pytest.mark.parametrize(
    ("name", "low", "high"), [("l20", 210, 2520), ("a100", 210, 1410), ("h200", 345, 1980)]
)
def test_clocks(name: str, low: int, high: int) -> None:
    """Supported clocks run from lowest to highest in 15 MHz steps; the top one is the default."""
    card = load(name)
    assert card.supported_mhz == tuple(range(low, high + 1, 15))
    assert card.boost_mhz == high


def test_weights_and_kv_cache_fit_the_memory(card: Card) -> None:
    """Weights and KV cache take between half and 90 % of each GPU's memory."""
    kv_bytes = card.num_blocks * card.block_size * card.kv_bytes_per_token
    assert 0.5 * card.memory_total_bytes < kv_bytes + card.weights_bytes < 0.9 * card.memory_total_bytes


def test_gpu_spec_and_shape(card: Card) -> None:
    """The card gives the simulated GPU and the engine what they need."""
    spec = card.gpu_spec("GPU-1")
    assert (spec.uuid, spec.supported_mhz, spec.power_law) == ("GPU-1", card.supported_mhz, card.power)
    assert spec.cap_w == card.power_cap_w
    shape = card.engine_shape(max_num_seqs=32, max_num_batched_tokens=512)
    assert (shape.num_blocks, shape.max_num_seqs, shape.tp) == (card.num_blocks, 32, card.tp)
    assert card.engine_shape(num_blocks=50).num_blocks == 50


def test_unknown_card_and_size() -> None:
    """What is not there is refused with what there is."""
    with pytest.raises(CardError, match=r"card = 'v100': one of a100, h200, l20 is accepted"):
        load("v100")
    with pytest.raises(CardError, match=r"tp = 8: this card has tp1, tp2, tp4"):
        load("a100", 8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "l20"', "", "name = None"),
        ("value = 275.0", "value = -1.0", r"gpu.power_cap_w.value = -1.0"),
        ("value = 275.0", "value = nan", r"gpu.power_cap_w.value = nan"),
        ("value = 275.0", "value = true", r"gpu.power_cap_w.value = True"),
        ('how = "measured"', 'how = "guessed"', r"gpu.max_mhz.how = 'guessed': one of measured, fitted"),
        ('source = "steps"', 'source = "nowhere"', r"gpu.min_mhz.source = 'nowhere'"),
        ("step_mhz = {", "step = {", r"gpu.step: unknown key"),
        ("value = 15,", "value = 17,", "gpu clocks 210 to 2520 by 17 MHz"),
        ("[power]", "[watts]", "power: a table is needed"),
        ("[gpu]", "[gpu", "no TOML"),
    ],
)
def test_broken_cards(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A broken card is refused, naming the key, the value and what is accepted."""
    text = (FOLDER / "l20.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "card.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CardError, match=message):
        load_file(path)
