"""The energy model's refit in a process of its own: `python -m kvwattd.energy_learning.worker FOLDER`.

Scores the model that serves on the windows that came since, fits a challenger and lets it serve when it
beats the other on windows neither has seen. Bound in memory, processor time and priority as `refit_worker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvwatt.energy_artifact import from_text, to_text
from kvwatt.energy_effects import importance
from kvwatt.energy_learning import Counted, EnergyRefit, columns_of, refit_energy
from kvwatt.energy_model import EnergyModel, accuracy, shipped
from kvwatt.energy_table import TableEnergy
from kvwattd.api.schemas import RefitOutcome
from kvwattd.energy_learning.job import MODEL, Job, Result
from kvwattd.refit_worker import serve

MOST_FACTORS = 6  # told of what the model goes by
MIN_SCORED = 6  # windows: a minute


def work(job: Job, output: Path) -> Result:
    """Score, fit, judge; the challenger is written to `output` if it won."""
    step = _step(job)
    counted = [row.counted() for row in job.kept.windows]
    champion = champion_of(job.kept.model, step)
    fresh = [window for window in counted if window.number > job.kept.scored_through]
    scored = score(champion, fresh, step)
    done = refit_energy(champion, counted, job.kept.seen_through, step)
    serving = champion
    if done.verdict.promote and done.challenger is not None:
        serving = done.challenger
        output.write_text(to_text(serving), encoding="utf-8")
    return Result(
        outcome=_outcome(done),
        reason=done.verdict.reason,
        accuracy=scored,
        scored_through=fresh[-1].number if scored is not None else job.kept.scored_through,
        trained_through=done.trained_through if serving is not champion else job.kept.seen_through,
        importance=factors(serving, counted, step) if scored is not None else {},
    )


def _outcome(done: EnergyRefit) -> RefitOutcome:
    if done.challenger is None:
        return "too_few"
    return "promoted" if done.verdict.promote else "kept"


def _step(job: Job) -> TableEnergy:
    from kvwatt import artifact
    from kvwatt.state import EngineShape

    shape = EngineShape(**job.shape.model_dump())
    return TableEnergy(artifact.load_compiled(job.step_model, job.clocks_mhz, shape))


def champion_of(text: str, step: TableEnergy) -> EnergyModel:
    """The model that serves; before any was learned, the step model's law. Raises EnergyArtifactError."""
    if text:
        return from_text(text)
    idle = step.idle_power_w(np.array([float(max(step.model.clocks_mhz))]))
    return shipped(max(float(idle[0]), 1.0))


def score(model: EnergyModel, fresh: Sequence[Counted], step: TableEnergy) -> float | None:
    """1 - MAPE over windows that it has not seen, None for too few."""
    if len(fresh) < MIN_SCORED:
        return None
    windows, joules = columns_of(fresh)
    return accuracy(joules, model.power_w(windows, step) * windows.duration_s)


def factors(model: EnergyModel, counted: Sequence[Counted], step: TableEnergy) -> dict[str, float]:
    """What the model goes by most: accuracy lost when a factor is shuffled among the windows."""
    windows, joules = columns_of(counted)
    lost = importance(lambda asked: model.power_w(asked, step), windows, joules)
    return {name: value for name, value in list(lost.items())[:MOST_FACTORS] if value > 0.0}


if __name__ == "__main__":
    serve(Job.model_validate_json, work, MODEL)
