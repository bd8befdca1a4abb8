"""Telemetry of a fleet: Parquet files with the columns of a profile, read by the workers of a Dask cluster.

Every worker must see the files under the same path. What is small comes back to the caller: a sample for
the priors, idle power by clock, ranges. The rows themselves stay where they are.
"""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvwatt.lattice import context_tokens
from kvwatt.profiles import KINDS, ProfileTable

NEEDED = ("clock_mhz", "decode_batch", "kv_tokens", "prefill_tokens", "step_time_s", "power_w", "kind")
LOAD = ("clock_mhz", "decode_batch", "kv_tokens", "prefill_tokens")
OPTIONAL = ("tp", "hardware", "vllm_version", "model_name")
FEATURES = ("clock_mhz", "batch", "context", "prefill")
SAMPLE_ROWS = 50_000
HELD_OUT = 5  # one row in so many is not trained on until the errors are known
_SEED = 0

Frame = Any  # a Dask or pandas data frame; neither is installed with kvwatt itself


class TelemetryError(ValueError):
    """The files cannot be trained on; the message names the column, what it holds and what is accepted."""


@dataclass(frozen=True)
class Telemetry:
    """Busy rows on the cluster, and what of them fits into this process."""

    rows: Frame  # a Dask frame: LOAD, step_time_s, power_w, held
    count: int
    sample: ProfileTable  # all rows up to SAMPLE_ROWS
    held: np.ndarray[Any, np.dtype[np.bool_]]  # of the sample
    ranges: dict[str, tuple[float, float]]
    hardware: str
    vllm_version: str
    model_name: str


def read(
    patterns: list[str], hardware: str | None, tp: int | None, parts: int, sample_rows: int = SAMPLE_ROWS
) -> Telemetry:
    """Open the files and look through them once, on the cluster of the current client.

    `parts`: at least so many partitions, so that every worker has some. Raises TelemetryError, OSError.
    """
    import dask.dataframe

    paths = sorted(path for pattern in patterns for path in glob.glob(pattern))  # noqa: PTH207 (a pattern)
    if not paths:
        raise TelemetryError(f"no file matches {', '.join(patterns)}")
    frame = dask.dataframe.read_parquet(paths)
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise TelemetryError(f"columns missing: {', '.join(missing)}; needed are {', '.join(NEEDED)}")
    names = [*NEEDED, *(name for name in OPTIONAL if name in frame.columns)]
    frame = _chosen(frame[names], hardware, tp)
    if frame.npartitions < parts:
        frame = frame.repartition(npartitions=parts)
    frame = frame.persist()
    return _looked_through(frame, hardware, tp, sample_rows)


def _chosen(frame: Frame, hardware: str | None, tp: int | None) -> Frame:
    if hardware is not None and "hardware" in frame.columns:
        frame = frame[frame["hardware"] == hardware]
    if tp is not None and "tp" in frame.columns:
        frame = frame[frame["tp"] == tp]
    return frame


def _looked_through(frame: Frame, hardware: str | None, tp: int | None, sample_rows: int) -> Telemetry:
    import dask

    summaries = dask.compute(*(dask.delayed(summary)(part) for part in frame.to_delayed()))
    complaint = next((told["wrong"] for told in summaries if told["wrong"]), None)
    if complaint:
        raise TelemetryError(complaint)
    found = {name: sorted(set().union(*(told[name] for told in summaries))) for name in OPTIONAL}
    name = hardware or _only(found["hardware"], "hardware", "give --hardware NAME")
    size = _only(found["tp"] or [tp or 1], "tp", "choose one with --tp")
    count = sum(told["rows"] for told in summaries)
    if not count:
        raise TelemetryError(f"no busy rows of {name!r} with tp={size}")
    ranges = {
        key: (
            min(told["low"][key] for told in summaries if told["rows"]),
            max(told["high"][key] for told in summaries if told["rows"]),
        )
        for key in LOAD
    }
    rows = frame.map_partitions(busy, meta=busy(frame._meta))
    share = min(sample_rows / count, 1.0)
    sampled = rows.map_partitions(sample_of, share, meta=rows._meta).compute()
    idle = _idle(summaries)
    return Telemetry(
        rows=rows,
        count=count,
        sample=_table(sampled, int(size), idle),
        held=sampled["held"].to_numpy(dtype=bool),
        ranges=ranges,
        hardware=str(name),
        vllm_version=_common(found["vllm_version"]),
        model_name=_common(found["model_name"]),
    )


def _only(values: list[Any], column: str, way_out: str) -> Any:  # noqa: ANN401 (a cell of any type)
    if len(values) != 1:
        raise TelemetryError(f"{column} must have one value, got {values or 'none'}: {way_out}")
    return values[0]


def _common(values: list[Any]) -> str:
    return str(values[0]) if len(values) == 1 else "several" if values else "unknown"


def summary(part: Frame) -> dict[str, Any]:
    """What one partition holds, and what is wrong with it; runs on a worker."""
    working = part[part["kind"] != "idle"]
    resting = part[part["kind"] == "idle"]
    by_clock = resting.groupby("clock_mhz")["power_w"].agg(["sum", "count"])
    return {
        "wrong": _wrong(part, working, resting),
        "rows": len(working),
        "low": {name: float(working[name].min()) for name in LOAD},
        "high": {name: float(working[name].max()) for name in LOAD},
        "idle": [(float(clock), float(row["sum"]), int(row["count"])) for clock, row in by_clock.iterrows()],
        **{name: set(part[name].dropna().unique().tolist()) if name in part else set() for name in OPTIONAL},
    }


def _wrong(part: Frame, working: Frame, resting: Frame) -> str | None:
    unknown = sorted(set(part["kind"].unique().tolist()) - set(KINDS))
    if unknown:
        return f"kind must be one of {', '.join(KINDS)}, got {', '.join(map(repr, unknown))}"
    bounds = (("clock_mhz", 1.0), ("decode_batch", 0.0), ("kv_tokens", 0.0), ("prefill_tokens", 0.0))
    for column, lowest in (*bounds, ("step_time_s", 1e-9)):
        complaint = _outside(working[column], column, lowest)
        if complaint:
            return complaint
    measured = working["power_w"].dropna()
    return _outside(measured, "power_w", 1e-9) or _outside(resting["power_w"], "power_w of idle rows", 1e-9)


def _outside(values: Frame, column: str, lowest: float) -> str | None:
    numbers = values.to_numpy(dtype=np.float64)
    bad = numbers[~(np.isfinite(numbers) & (numbers >= lowest))]
    if not len(bad):
        return None
    return f"{column} must be finite and >= {lowest:g}, got {bad[0]} ({len(bad)} such rows in one part)"


def busy(part: Frame) -> Frame:
    """The busy rows as numbers, and which of them are held out; runs on a worker.

    Rows of one clock and load are held out together: a point is either seen or not.
    """
    import pandas

    working = part[part["kind"] != "idle"]
    numbers = working[[*LOAD, "step_time_s", "power_w"]].astype("float64")
    hashes = pandas.util.hash_pandas_object(numbers[list(LOAD)], index=False)
    return numbers.assign(held=(hashes % HELD_OUT == 0).to_numpy(dtype=bool))


def sample_of(part: Frame, share: float) -> Frame:
    """A fixed draw of rows; all of them where the share is 1; runs on a worker."""
    if share >= 1.0:
        return part
    return part.sample(n=math.floor(len(part) * share), random_state=_SEED).sort_index()


def labelled(part: Frame, label: str, predicted: Any) -> Frame:  # noqa: ANN401 (a function of columns)
    """Features and the logarithm of what a prior leaves to be explained; runs on a worker."""
    import pandas

    clock, batch, kv, prefill = (part[name].to_numpy(dtype=np.float64) for name in LOAD)
    ratio = part[label].to_numpy(dtype=np.float64) / predicted(clock, batch, kv, prefill)
    columns = (clock, batch, context_tokens(batch, kv), prefill, np.log(ratio))
    return pandas.DataFrame(dict(zip((*FEATURES, "log_ratio"), columns, strict=True)), index=part.index)


def _idle(summaries: tuple[dict[str, Any], ...]) -> dict[float, float]:
    """Mean idle power by clock over the fleet."""
    totals: dict[float, tuple[float, int]] = {}
    for told in summaries:
        for clock, watts, count in told["idle"]:
            before_w, before = totals.get(clock, (0.0, 0))
            totals[clock] = (before_w + watts, before + count)
    return {clock: totals[clock][0] / totals[clock][1] for clock in sorted(totals)}


def _table(frame: Frame, tp: int, idle: dict[float, float]) -> ProfileTable:
    columns = {name: frame[name].to_numpy(dtype=np.float64) for name in (*LOAD, "step_time_s", "power_w")}
    return ProfileTable(
        **columns, tp=tp, idle_clock_mhz=np.array(list(idle)), idle_power_w=np.array(list(idle.values()))
    )
