"""The refit itself, in a process of its own: `python -m kvwattd.refit_worker FOLDER`.

Reads FOLDER/job.json, writes FOLDER/result.json and, when the challenger won, an artifact in
FOLDER/model. Lowest priority, one thread, bounded memory and processor time: serving comes first.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from kvwattd.api.schemas import RefitOutcome

JOB, RESULT, MODEL = "job.json", "result.json", "model"
MEMORY_BYTES = 3 << 29  # of address space; a fit takes about 0.5 GB of it and touches half of that
PROCESSOR_S = 120
NICENESS = 19

_Job = TypeVar("_Job")
_Told = TypeVar("_Told", bound=BaseModel)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_Message):
    """EngineShape, as JSON."""

    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    tp: int


class Job(_Message):
    """What to fit and what to beat. Samples are numbers in the order of kvwatt.samples.SAMPLE_FIELDS."""

    shipped: Path
    champion: Path
    seen_through: int
    samples: list[list[float | None]]
    clocks_mhz: tuple[int, ...]
    shape: Shape


class Failure(_Message):
    """What every worker's result has at least."""

    outcome: RefitOutcome = "failed"
    reason: str


class Result(_Message):
    """The verdict; with `promoted` there is a model to take over."""

    outcome: RefitOutcome
    reason: str
    samples: int = 0
    trained_through: int = 0
    champion_error: float | None = None
    challenger_error: float | None = None


def limit(memory_bytes: int = MEMORY_BYTES, processor_s: int = PROCESSOR_S) -> None:
    """Bind this process for good. Where memory runs out it is the first to go, before daemon and server."""
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (processor_s, processor_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def work(job: Job, output: Path) -> Result:
    """Fit, judge, and write the challenger to `output` if it won."""
    from kvwatt import artifact
    from kvwatt.refit import refit
    from kvwatt.samples import sample_from
    from kvwatt.state import EngineShape

    profile = artifact.load_profile(job.shipped)
    shipped = artifact.load(job.shipped)
    champion = shipped if job.champion == job.shipped else artifact.load(job.champion)
    samples = [sample_from(values) for values in job.samples]
    done = refit(profile, shipped, champion, samples, job.seen_through)
    outcome: RefitOutcome = "kept" if done.challenger is not None else "too_few"
    if done.verdict.promote and done.challenger is not None:
        outcome = "promoted"
        artifact.save(done.challenger, output)
        # The daemon then reads the compiled table and need not import LightGBM for it.
        artifact.load_compiled(output, job.clocks_mhz, EngineShape(**job.shape.model_dump()))
    return Result(
        outcome=outcome,
        reason=done.verdict.reason,
        samples=done.verdict.samples,
        trained_through=done.trained_through,
        champion_error=done.verdict.champion_error,
        challenger_error=done.verdict.challenger_error,
    )


def serve(read: Callable[[bytes], _Job], work: Callable[[_Job, Path], _Told], model: str) -> None:
    """A worker's life: FOLDER/job.json, `work` with the place for a model, FOLDER/result.json.

    Exit code 0: there is a result, which may tell of a failure; anything else: there is none.
    """
    from kvwatt.artifact import ArtifactError

    limit()
    folder = Path(sys.argv[1])
    job = read((folder / JOB).read_bytes())
    told: BaseModel
    try:
        told = work(job, folder / model)
    except (ArtifactError, ValueError, MemoryError) as error:
        told = Failure(reason=f"{type(error).__name__}: {error}")
    (folder / RESULT).write_text(told.model_dump_json(indent=2), encoding="utf-8")


if __name__ == "__main__":
    serve(Job.model_validate_json, work, MODEL)
