"""Which instance a record is of: by the name its server was given, else by model and engine."""

from __future__ import annotations

from collections.abc import Iterable

from kvwattd.instance import InstanceRuntime
from kvwattd.telemetry.tap import TapError
from kvwattd.vllm_plugin.wire import INSTANCE_ENV, Record, SchedulerRecord


def addressee(record: Record | SchedulerRecord, runs: Iterable[InstanceRuntime]) -> InstanceRuntime:
    """The one instance the record can be of. Raises TapError where there is none, or more than one."""
    found = [run for run in runs if _may_be_of(record, run)]
    if len(found) == 1:
        return found[0]
    sender = f"instance {record.instance!r}, model {record.model!r}, engine {record.engine}"
    if not found:
        raise TapError("unknown_instance", f"{sender} fits no [[instance]]")
    names = ", ".join(run.name for run in found)
    raise TapError("ambiguous", f"{sender} fits {names}; give the server its name in {INSTANCE_ENV}")


def _may_be_of(record: Record | SchedulerRecord, run: InstanceRuntime) -> bool:
    page = run.observation.snapshot
    engine = run.config.engine or (page.engine if page else None)
    if engine is not None and engine != str(record.engine):
        return False
    if record.instance:
        return record.instance == run.name
    model = run.config.model_name or (page.model_name if page else None)
    return model is not None and model == record.model
