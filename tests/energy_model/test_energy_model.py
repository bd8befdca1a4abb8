"""The energy model: prior times trees, what it does with less, what it refuses, how it is replaced."""

from __future__ import annotations

import json

import lightgbm
import numpy as np
import pytest
from energy_worlds import Law, windows

from kvwatt.energy_artifact import EnergyArtifactError, from_text, to_text
from kvwatt.energy_baselines import fit_hardware, fit_linear, fit_token_price
from kvwatt.energy_effects import dependence, importance
from kvwatt.energy_factors import FACTORS, FactorError, window_row
from kvwatt.energy_learning import Counted, WindowRing, refit_energy
from kvwatt.energy_model import FEATURES, EnergyModel, Prior, accuracy, features_of, shipped
from kvwatt.energy_prior import step_power_w
from kvwatt.energy_training import EnergyOptions, fit_energy
from kvwatt.energy_trees import row_values
from kvwatt.lattice import Floats
from kvwatt.training import TrainingError
from kvwatt.trees import read_trees

LAW = Law()
FAST = EnergyOptions(rounds=60)


def truth_j(
    seed: int, count: int = 400, clocks: tuple[float, ...] = (900.0, 1200.0, 1500.0, 1800.0)
) -> Floats:
    """What these windows take: the law, 10 % more than it says, and leakage with the temperature."""
    seen = windows(count, seed, clocks)
    leak = 1.0 + 0.002 * (seen.column("temperature_c") - 50.0)
    return np.asarray(1.1 * leak * step_power_w(LAW, seen) * seen.duration_s)


@pytest.fixture(scope="module")
def trained() -> EnergyModel:
    return fit_energy(windows(400, 1), truth_j(1), step=LAW, options=FAST)


def test_before_anything_was_learned_the_step_model_speaks() -> None:
    """Steps times their power, and idle power for the rest of the time."""
    seen = windows(20, 3)
    clock, batch = seen.column("clock_mhz"), seen.column("running")
    kv = seen.column("kv_usage") * 1e5
    chunks = seen.column("prompt_tokens_per_s") / 500.0
    plain = (seen.column("steps_per_s") - chunks) * LAW.step_time_s(clock, batch, kv, np.zeros(20))
    mixed = chunks * LAW.step_time_s(clock, batch, kv, np.full(20, 500.0))
    busy_w = LAW.power_w(clock, batch, kv, kv)
    expected = (plain + mixed) * busy_w / np.maximum(plain + mixed, 1.0)
    expected += np.maximum(1.0 - plain - mixed, 0.0) * LAW.idle_power_w(clock)
    assert shipped(100.0).power_w(seen, LAW) == pytest.approx(expected)


def test_it_learns_what_the_prior_does_not_know(trained: EnergyModel) -> None:
    """At clocks never seen too, closer than the shipped card, linear regression and the meter."""
    unseen, joules = windows(300, 2, (1050.0, 1350.0, 1650.0)), truth_j(2, 300, (1050.0, 1350.0, 1650.0))
    ours = accuracy(joules, trained.power_w(unseen, LAW) * 10.0)
    rivals = (fit_linear, fit_hardware, fit_token_price)
    others = [accuracy(joules, f(windows(400, 1), truth_j(1)).power_w(unseen) * 10.0) for f in rivals]
    others.append(accuracy(joules, shipped(100.0).power_w(unseen, LAW) * 10.0))
    assert ours > 0.97
    assert ours > max(others)


def test_missing_factors_cost_accuracy_and_nothing_else(trained: EnergyModel) -> None:
    """Any one factor unknown, or all of them: the answer stays finite and of the right size."""
    unseen, joules = windows(100, 5), truth_j(5, 100)
    for name in FACTORS:
        watts = trained.power_w(unseen.without([name]), LAW)
        assert np.isfinite(watts).all()
        assert (watts > 0).all()
    assert accuracy(joules, trained.power_w(unseen.without(["temperature_c"]), LAW) * 10.0) > 0.9
    assert np.isfinite(trained.power_w(unseen.without(FACTORS), LAW)).all()


def test_energy_per_token_and_request_is_the_windows_energy_divided(trained: EnergyModel) -> None:
    """And unknown where no token or request came."""
    seen = windows(10, 6)
    told = trained.energy(seen, LAW)
    assert told.output_token_j * seen.column("output_tokens_per_s") * 10.0 == pytest.approx(told.window_j)
    none = trained.energy(seen.replacing("requests_per_s", 0.0), LAW)
    assert np.isnan(none.request_j).all()


def test_rows_are_valued_as_lightgbm_values_them(trained: EnergyModel) -> None:
    """Our reader and our evaluation against LightGBM's own on the same text."""
    seen = windows(200, 7)
    features = features_of(seen, trained.prior_w(seen, LAW))
    theirs = lightgbm.Booster(model_str=trained.trees).predict(features)
    assert row_values(read_trees(trained.trees, len(FEATURES)), features) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("prior", list(Prior))
def test_a_model_is_the_same_after_its_text_was_read(prior: Prior) -> None:
    """Every prior goes through the text unharmed."""
    model = fit_energy(windows(100, 8), truth_j(8, 100), prior, LAW, EnergyOptions(rounds=10))
    again, seen = from_text(to_text(model)), windows(30, 9)
    assert again.power_w(seen, LAW) == pytest.approx(model.power_w(seen, LAW), rel=1e-12)


def _changed(model: EnergyModel, **changes: object) -> str:
    return json.dumps(json.loads(to_text(model)) | changes)


def test_texts_that_are_no_model_are_refused_by_name(trained: EnergyModel) -> None:
    """Whatever is wrong, one error that names it; nothing is executed, nothing native is asked."""
    bad = {
        "JSON": "{",
        "document": "[]",
        "schema_version": _changed(trained, schema_version=2),
        "features": _changed(trained, features=["clock_mhz"]),
        "prior": _changed(trained, prior="magic"),
        "usual_w": _changed(trained, usual_w=0.0),
        "offset": _changed(trained, offset="NaN"),
        "watts": _changed(trained, law={**json.loads(to_text(trained))["law"], "watts": [-1.0]}),
        "a work law": _changed(trained, law=None),
        "tree": _changed(trained, trees="tree\n"),
        "num_class": _changed(trained, trees=trained.trees.replace("num_class=1", "num_class=9")),
        "deep": "[" * 100_000,
    }
    for text in bad.values():
        with pytest.raises(EnergyArtifactError):
            from_text(text)
    for key in ("schema_version", "features", "prior", "usual_w", "offset", "watts"):
        with pytest.raises(EnergyArtifactError, match=key):
            from_text(bad[key])


@pytest.mark.parametrize(
    ("duration_s", "factors", "named"),
    [
        (0.0, {}, "duration_s"),
        (float("nan"), {}, "duration_s"),
        (10.0, {"clock_mhz": -1.0}, "clock_mhz"),
        (10.0, {"kv_usage": 1.5}, "kv_usage"),
        (10.0, {"running": float("inf")}, "running"),
        (10.0, {"moon_phase": 1.0}, "moon_phase"),
    ],
)
def test_impossible_windows_are_refused(duration_s: float, factors: dict[str, float], named: str) -> None:
    """The factor is named, and what would be accepted."""
    with pytest.raises(FactorError, match=named):
        window_row(duration_s, factors)


def test_a_prior_without_its_step_model_is_an_error(trained: EnergyModel) -> None:
    """Never a silent guess."""
    with pytest.raises(ValueError, match="step model"):
        trained.power_w(windows(3, 1))


@pytest.mark.parametrize("joules", [np.zeros(40), np.full(40, np.nan), np.ones(39)])
def test_impossible_energy_is_refused(joules: Floats) -> None:
    """Zero, NaN or too few joules teach nothing."""
    with pytest.raises(TrainingError):
        fit_energy(windows(40, 1), joules, Prior.FLAT)


def test_importance_finds_the_factors_that_matter(trained: EnergyModel) -> None:
    """Temperature, which the truth goes by, before the shape of the prompts, which it does not."""
    seen, joules = windows(300, 11), truth_j(11, 300)
    lost = importance(lambda w: trained.power_w(w, LAW), seen, joules)
    assert lost["clock_mhz"] > 0.02
    assert lost["temperature_c"] > 0.003 > abs(lost["prompt_mean_tokens"])
    assert "cpu_utilization" not in lost


def test_power_depends_on_the_clock_as_the_law_says(trained: EnergyModel) -> None:
    """Partial dependence rises from end to end."""
    told = dependence(lambda w: trained.power_w(w, LAW), windows(100, 12), "clock_mhz", levels=5)
    assert told.power_w[-1] > 1.2 * told.power_w[0]
    with pytest.raises(ValueError, match="cpu_utilization"):
        dependence(lambda w: trained.power_w(w, LAW), windows(10, 12), "cpu_utilization")


def _counted(seed: int, count: int, factor: float = 1.0) -> list[Counted]:
    seen, joules = windows(count, seed), factor * truth_j(seed, count)
    rows = np.concatenate([seen.duration_s[:, None], seen.values], axis=1)
    return [Counted(n + 1, tuple(row), float(j)) for n, (row, j) in enumerate(zip(rows, joules, strict=True))]


def test_a_better_challenger_takes_over_and_an_equal_one_does_not(trained: EnergyModel) -> None:
    """Judged on windows that neither has seen."""
    counted = _counted(20, 300)
    better = refit_energy(shipped(150.0), counted, 0, LAW, options=FAST)
    assert better.verdict.promote
    assert better.trained_through == 210
    equal = refit_energy(trained, counted, 0, LAW, options=EnergyOptions(rounds=5))
    assert not equal.verdict.promote
    few = refit_energy(shipped(150.0), counted[:100], 0, LAW, options=FAST)
    assert few.challenger is None
    assert "too few" in few.verdict.reason


def test_the_memory_is_bounded_and_keeps_what_is_rare() -> None:
    """Five windows at a clock of their own outlive a thousand of the usual one."""
    ring = WindowRing(recent=50, strata=8, per_stratum=10)
    for number in range(1000):
        clock = 900.0 if number < 5 else 1800.0
        ring.add(window_row(10.0, {"clock_mhz": clock, "output_tokens_per_s": 100.0}), 1000.0)
    kept = ring.windows()
    assert len(ring) == len(kept) == 65
    assert [window.number for window in kept] == sorted(window.number for window in kept)
    assert sum(window.row[1 + FACTORS.index("clock_mhz")] == 900.0 for window in kept) == 5
