"""From the loop into the file: everything is counted once, windows are held, shadow mode holds none."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_world import EPOCH_S, OFTEN, World

from kvwatt.holdout import HELD, Arm
from kvwattd.config import Mode
from kvwattd.instance import Override
from kvwattd.ledger import proof
from kvwattd.ledger.day import FILE_NAME
from kvwattd.ledger.entry import Entry
from kvwattd.ledger.reading import runs
from kvwattd.regime import Regime

SPAN_S = 900.0


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[Entry]]:
    """A quarter of an hour under control; what was seen at each tick is checked as it passes."""
    world = World(tmp_path_factory.mktemp("ledger"))

    def obeyed() -> None:
        run = world.run
        if run.holdout.held:
            assert run.regime is Regime.ACTIVE and run.applied.clock_mhz is None
            assert not run.decisions[-1].applied

    world.advance(SPAN_S, obeyed)
    return world, world.rows()


def test_every_joule_second_and_token_is_in_exactly_one_row(played: tuple[World, list[Entry]]) -> None:
    """Sums over rows are those of the counters, to a millijoule, a millisecond and a token."""
    world, rows = played
    account = world.counter.reading()
    assert sum(r.energy_mj for r in rows) == pytest.approx(1e3 * account.total_j, abs=1.0)
    assert sum(r.time_ms for r in rows) == 1000 * SPAN_S - 500
    first, last = world.run.observation.first, world.run.observation.snapshot
    assert first is not None and last is not None
    grown = last.generation_tokens_total - first.generation_tokens_total
    assert sum(r.generation_tokens for r in rows) == grown
    finished = last.requests_finished_total - first.requests_finished_total
    assert sum(r.requests for r in rows) == finished
    assert sum(r.e2e_seen for r in rows) == pytest.approx(1000 * finished, abs=len(rows))
    assert sum(sum(r.bindings.values()) for r in rows) == sum(world.run.bindings.values())
    assert all(0 <= r.ttft_met <= r.ttft_seen for r in rows)


def test_rows_follow_each_other_and_are_of_one_kind(played: tuple[World, list[Entry]]) -> None:
    """No gap, no overlap; none longer than the interval and a reading."""
    _, rows = played
    for one, other in itertools.pairwise(rows):
        assert abs(other.start_ms - one.end_ms) <= 1
    assert all(r.time_ms <= 31_000 for r in rows)
    assert rows[0].start_ms >= 1000 * EPOCH_S


def test_windows_run_at_default_and_the_rest_below(played: tuple[World, list[Entry]]) -> None:
    """About half of the slots are held, each 20 s warm-up and 40 s measured; clocks tell them apart."""
    world, rows = played
    held = [r for r in rows if r.arm is Arm.DEFAULT]
    assert len(proof.windows_of(rows)) == world.run.holdout.windows >= 5
    top = world.model.clocks_mhz[-1]
    assert {r.clock_min_mhz for r in held} == {top}
    in_control = proof.controlled(rows)
    assert sum(r.clock_mhz_ms for r in in_control) < 0.8 * top * sum(r.time_ms for r in in_control)
    assert all(r.slot > 0 for r in rows if r.arm in HELD)


def test_anybody_can_draw_the_windows_again(played: tuple[World, list[Entry]]) -> None:
    """From the seed in the ledger; a window that was chosen otherwise is found out."""
    world, rows = played
    began = runs(world.folder / FILE_NAME)
    count = len(proof.windows_of(rows))
    assert proof.drawn_by_seed(rows, began) == (count, count)
    cheated = [replace(r, place=r.place + 1) if r.arm is Arm.DEFAULT else r for r in rows]
    assert proof.drawn_by_seed(cheated, began)[0] < count
    assert proof.drawn_by_seed(rows, []) == (0, count)


def test_windows_and_model_tell_the_same_saving(played: tuple[World, list[Entry]]) -> None:
    """The plant is the model's own: both agree, and the work is modelled alike in both arms."""
    _, rows = played
    found = proof.measured(rows)
    assert found is not None and found.columns[0] == "model_j"
    assert 0.1 < found.saved_j / found.baseline_j < 0.6
    assert found.half_width_j < 0.15 * found.baseline_j
    assert abs(proof.modelled_j(rows) - found.saved_j) < 0.05 * found.baseline_j
    per_second = [
        sum(r.work_mj for r in some) / sum(r.time_ms for r in some)
        for some in (proof.controlled(rows), [r for r in rows if r.arm is Arm.DEFAULT])
    ]
    assert per_second[0] == pytest.approx(per_second[1], rel=0.05)
    best = proof.best_fixed(proof.controlled(rows), found.baseline_j)
    assert best is not None and best.baseline_j < found.baseline_j


def test_in_shadow_mode_nothing_is_held_and_what_would_be_used_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path, mode=Mode.SHADOW)
    world.advance(300.0)
    rows = world.rows()
    assert {r.arm for r in rows} == {Arm.NONE} and {r.mode for r in rows} == {"shadow"}
    assert world.run.holdout.windows == 0
    used, would = sum(r.energy_mj for r in rows), sum(r.would_mj for r in rows)
    assert 0.4 * used < would < 0.95 * used
    assert sum(r.default_mj for r in rows) == pytest.approx(used, abs=len(rows))


def test_a_clock_by_hand_or_doubt_holds_nothing(tmp_path: Path) -> None:
    """OVERRIDE keeps its clock through what would have been windows; FAILSAFE counts for nothing."""
    world = World(tmp_path)
    world.advance(200.0)
    world.run.override = Override(1200, world.now_s + 300.0)
    world.advance(300.0, lambda: None if world.run.regime is not Regime.OVERRIDE else _by_hand(world))
    world.advance(30.0)
    world.reads = False
    world.advance(60.0)
    assert world.run.regime is Regime.FAILSAFE and world.run.holdout.arm is Arm.NONE
    world.reads = True
    world.advance(5.0)
    rows = world.rows()
    assert sum(r.time_ms for r in rows) == pytest.approx(1000 * (595.0 - 0.5), abs=2)
    assert [(r.time_ms, r.arm) for r in rows if r.time_ms > 31_000] == [(60_500, Arm.NONE)]
    override = [r for r in rows if r.regimes.get("override", 0) > 0.9 * r.time_ms]
    assert override and {r.arm for r in override} == {Arm.NONE}


def _by_hand(world: World) -> None:
    assert world.run.applied.clock_mhz == 1200 and not world.run.holdout.held


def test_without_a_ledger_nothing_is_held(tmp_path: Path) -> None:
    """What could not be kept is not measured."""
    from kvwattd.ledger.config import LedgerConfig
    from kvwattd.ledger.day import Ledger

    world = World(tmp_path)
    world.ledger.close()
    world.ledger = Ledger(
        LedgerConfig(enabled=False), OFTEN, tmp_path / "none", world.wall, lambda: world.mode
    )
    world.ledger.start()
    world.advance(300.0)
    assert world.run.holdout.windows == 0
    assert not (tmp_path / "none").exists()


def test_a_mistake_in_the_accounts_ends_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong in them is told once and counted; the loop goes on, and so does the ledger."""

    class Broken(dict):  # type: ignore[type-arg]
        def items(self) -> object:  # type: ignore[override]
            raise RuntimeError("broken on purpose")

    world = World(tmp_path)
    world.advance(100.0)
    slots = world.run.holdout
    world.run.energy = Broken()
    world.ledger.on_gpu(world.run)
    world.run.energy = Broken()
    world.ledger.on_gpu(world.run)
    assert world.ledger.mistakes == 2
    assert caplog.text.count("the open interval is lost") == 1
    world.advance(35.0)
    assert world.run.regime is Regime.ACTIVE and world.run.holdout is slots
    assert sum(r.time_ms for r in world.rows()) > 90_000
