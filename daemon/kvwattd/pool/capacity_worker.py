"""Makes one capacity table in a process of its own: seconds of arithmetic that the loop must not wait for.

python -m kvwattd.pool.capacity_worker FOLDER      job.json, model.npz -> table.json
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from kvwatt.capacity_table import CapacityTable
from kvwatt.compiled import CompiledModel
from kvwatt.queueing import InstanceQueue, MixedQueue, Regime, capacity_table
from kvwatt.queueing_demand import Demand, lengths
from kvwatt.state import EngineShape, Slo, SloTarget
from kvwattd.whole_file import write_whole

JOB, MODEL, TABLE = "job.json", "model.npz", "table.json"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_File):
    """As EngineShape."""

    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    tp: int


class Promise(_File):
    limit_s: float
    quantile: float


class Group(NamedTuple):
    """Minutes of the share `share`, whose lengths are these factors of the mean ones."""

    share: float
    prompts: float
    outputs: float


class Job(_File):
    """What a table depends on, but for the model. `prompts`, `outputs`: lengths of equal probability;
    `groups`: how they move with the minutes, nothing where that is not known."""

    upper_factor: float
    clocks_mhz: tuple[int, ...]
    shape: Shape
    slo: dict[str, Promise]
    prompts: tuple[float, ...]
    outputs: tuple[float, ...]
    dispersion: float
    groups: tuple[Group, ...] = ()

    def demand(self, group: Group = Group(1.0, 1.0, 1.0)) -> Demand:  # noqa: B008  # a constant
        """Of one group of minutes."""
        prompts = [max(tokens * group.prompts, 1.0) for tokens in self.prompts]
        outputs = [max(tokens * group.outputs, 1.0) for tokens in self.outputs]
        return Demand(lengths(prompts), lengths(outputs), self.dispersion)

    def promises(self) -> Slo:
        return Slo(**{name: SloTarget(p.limit_s, p.quantile) for name, p in self.slo.items()})


class Table(_File):
    """As CapacityTable, with the job it was made for."""

    job: Job
    model: str
    rates_per_s: tuple[float, ...]
    watts: tuple[tuple[float, ...], ...]
    max_rates_per_s: tuple[float, ...]

    def capacity(self) -> CapacityTable:
        """Raises ValueError where the numbers are no table."""
        return CapacityTable(
            self.job.clocks_mhz,
            np.array(self.rates_per_s),
            np.array(self.watts),
            np.array(self.max_rates_per_s),
        )


def save_model(model: CompiledModel, columns: list[int], path: Path) -> None:
    """The columns of some clocks; plain arrays."""
    batch, context, prefill = model.axes
    np.savez(
        path,
        batch=batch,
        context=context,
        prefill=prefill,
        step_s=model.step_s[:, columns],
        busy_w=model.busy_w[:, columns],
        idle_w=np.asarray(model.idle_w)[columns],
    )


def load_model(path: Path, job: Job) -> CompiledModel:
    """What `save_model` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        axes = (arrays["batch"], arrays["context"], arrays["prefill"])
        tables = arrays["step_s"], arrays["busy_w"], arrays["idle_w"]
    return CompiledModel(job.clocks_mhz, job.upper_factor, axes, *tables)


def make(model: CompiledModel, job: Job, digest: str) -> Table:
    """The table itself."""
    shape = EngineShape(**job.shape.model_dump())
    queue = MixedQueue(
        [
            Regime(group.share, 1.0, InstanceQueue(model, shape, job.demand(group)))
            for group in job.groups or (Group(1.0, 1.0, 1.0),)
        ]
    )
    made = capacity_table(queue, job.promises())
    return Table(
        job=job,
        model=digest,
        rates_per_s=tuple(made.rates_per_s.tolist()),
        watts=tuple(tuple(row) for row in made.watts.tolist()),
        max_rates_per_s=tuple(made.max_rates_per_s.tolist()),
    )


def main(folder: Path, digest: str) -> None:
    """Yields to everybody: the requests that are served matter more."""
    os.nice(19)
    job = Job.model_validate_json((folder / JOB).read_bytes())
    made = make(load_model(folder / MODEL, job), job, digest)
    write_whole(folder / TABLE, made.model_dump_json().encode(), durable=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
