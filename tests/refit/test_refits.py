"""Refits as the daemon runs them: what is handed to the worker, taken over, remembered and told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from refit_instance import SHAPE, Instance, Slot
from refit_world import as_profiled, served, slower

from kvwatt import artifact
from kvwatt.compiled import compile_model
from kvwatt.samples import Sample
from kvwatt.throughput import StepModel
from kvwattd.learning import Learner
from kvwattd.model_versions import VersionStore
from kvwattd.refits import SAMPLES, Refits


@dataclass
class Stage:
    """Refits over one instance with a shipped model on disk."""

    store: VersionStore
    instance: Instance
    period_s: float = 900.0
    promoted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.learner = Learner()
        self.refits = Refits(
            self.period_s,
            {"chat": self.store},
            {"chat": self.learner},
            lambda: self.promoted.append(self.store.serving().number),
        )

    async def restored(self) -> None:
        """Run it until it has restored and waits for its first period."""
        over, restore = asyncio.Event(), self.learner.restore

        def restored(*kept: Any) -> None:
            restore(*kept)
            over.set()

        self.learner.restore = restored  # type: ignore[method-assign]
        running = asyncio.create_task(self.refits.run({"chat": self.instance}))  # type: ignore[dict-item]
        await asyncio.wait_for(over.wait(), 60.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        self.learner.restore = restore  # type: ignore[method-assign]

    async def refit(self, samples: list[Sample]) -> str:
        self.learner.restore("m", samples, 0)
        await self.refits.refit(self.instance)  # type: ignore[arg-type]
        return self.refits.view("chat").last or "none"


@pytest.fixture
def stage(ship: Callable[[Path], Path], shipped: StepModel, tmp_path: Path) -> Stage:
    compiled = compile_model(shipped, (600, 1000, 2000), SHAPE)
    return Stage(
        VersionStore(tmp_path / "models" / "chat", ship(tmp_path / "model")), Instance(Slot(compiled))
    )


async def test_a_winner_is_taken_over_and_the_next_one_has_to_beat_it(stage: Stage) -> None:
    """Version 1 serves; with nothing newer there is nothing to judge by; on newer data it stays."""
    samples = served(21, 300, slower)
    assert await stage.refit(samples) == "promoted"
    assert stage.promoted == [1]
    record = stage.store.serving().record
    assert record.parent == 0 and 0 < record.trained_through < 300
    assert record.challenger_error is not None and record.champion_error is not None
    assert record.challenger_error < record.champion_error
    # 90 of these were compared on, and so are newer than what version 1 was fitted to.
    assert await stage.refit(samples) == "kept"
    assert await stage.refit([*samples, *served(22, 300, slower, first=301)]) == "kept"
    assert stage.store.serving().number == 1 and stage.promoted == [1]
    assert stage.refits.view("chat").outcomes_total == {"promoted": 1, "kept": 2}


async def test_a_gpu_that_recovers_gets_its_model_back(stage: Stage) -> None:
    """When the cause is gone, a challenger near the shipped model wins against the version fitted to it."""
    old = served(23, 300, slower)
    assert await stage.refit(old) == "promoted"
    assert await stage.refit([*old, *served(24, 1500, as_profiled, first=301)]) == "promoted"
    assert stage.store.serving().number == 2


async def test_a_model_without_its_profile_is_not_refitted(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason and the way out are told, once."""
    (stage.store.shipped / artifact.PROFILE).unlink()
    assert await stage.refit(served(25, 200, slower)) == "failed"
    assert await stage.refit(served(25, 200, slower)) == "failed"
    assert "train the model again" in stage.refits.view("chat").reason
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert stage.store.serving().number == 0


async def test_a_full_disk_is_a_failed_refit(stage: Stage) -> None:
    """What cannot be written ends the refit, not the daemon."""
    stage.store.folder.parent.mkdir(parents=True)
    stage.store.folder.write_text("a file where the folder should be")
    assert await stage.refit(served(26, 200, slower)) == "failed"
    assert stage.store.serving().number == 0


async def test_too_few_samples_are_said_so(stage: Stage) -> None:
    """Early on there is nothing to judge by."""
    assert await stage.refit(served(27, 40)) == "too_few"
    assert "are needed" in stage.refits.view("chat").reason


async def test_samples_outlive_the_daemon(stage: Stage) -> None:
    """A restart takes up what was seen; numbers go on above what any version was fitted to."""
    samples = served(28, 300, slower)
    await stage.refit(samples)
    again = Stage(stage.store, stage.instance)
    await again.restored()
    assert again.learner.ring.samples() == samples and again.learner.served == "m"
    assert again.learner.ring.last == 300
    (stage.store.folder / SAMPLES).unlink()
    forgetful = Stage(stage.store, stage.instance)
    await forgetful.restored()
    assert forgetful.learner.ring.last == stage.store.serving().record.trained_through > 0


@pytest.mark.parametrize("content", ["", "{", '{"served": "m", "samples": [[1, 2]]}', "[]"])
async def test_a_damaged_memory_is_dropped(
    stage: Stage, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """Empty, cut, of another layout: learning starts anew."""
    stage.store.folder.mkdir(parents=True)
    (stage.store.folder / SAMPLES).write_text(content)
    await stage.restored()
    assert len(stage.learner.ring) == 0
    assert "learning starts anew" in caplog.text


async def test_zero_means_never(stage: Stage) -> None:
    """Switched off nothing runs, and the status says so."""
    off = Stage(stage.store, stage.instance, period_s=0.0)
    await asyncio.wait_for(off.refits.run({"chat": off.instance}), 60.0)  # type: ignore[dict-item]
    assert off.refits.view("chat").enabled is False
