"""Files that kvwatt reads and writes: their names, keys and columns, from the code that writes them."""

from __future__ import annotations

import inspect
import re

from kvwatt import artifact
from kvwatt.manifest import SCHEMA_VERSION, Manifest
from kvwatt.profiles import COLUMNS, KINDS
from kvwattd.docs.fields import fields_of, rows
from kvwattd.docs.text import NOTE, table
from kvwattd.ledger.entry import Entry
from kvwattd.ledger.schema import MIGRATIONS
from kvwattd.model_versions import Current, Record
from kvwattd.recording import lines
from kvwattd.vllm_plugin import told, wire

_KEY = re.compile(r'^ {8}"(\w+)":', re.MULTILINE)
# Keys and columns whose place in the code has no comment; a test compares them with what is written.
MANIFEST = {
    "hardware": "name of the GPU, as NVML tells it; a model for another one is refused",
    "tp": "tensor-parallel size that was measured",
    "rows": "measurements it was fitted to",
    "features": "of the trees",
    "schema_version": f"{SCHEMA_VERSION}; another one is refused",
    "vllm_version": "of the server that was measured",
    "model_name": "served name of the model that was measured",
    "upper_factor": "step time times this is the upper bound (conformal, 90 %)",
    "step_prior": "coefficients of the step-time prior",
    "power_prior": "coefficients of the power prior",
    "reference_mhz": "clock that the power prior is scaled to",
    "idle_clock_mhz": "clocks at which idle power was measured",
    "idle_w": "idle power there, watts",
    "step_axes": "knots of the table that the step-time trees are evaluated on",
    "power_axes": "the same of the power trees",
    "step_sha256": f"of {artifact.STEP_TREES}; a difference is refused",
    "power_sha256": f"of {artifact.POWER_TREES}; a difference is refused",
}
PROFILE = {
    "clock_mhz": "SM clock that was locked",
    "tp": "tensor-parallel size",
    "decode_batch": "requests in a step that get a token",
    "kv_tokens": "tokens in the KV cache, of all of them",
    "prefill_tokens": "prompt tokens computed in the step",
    "step_time_s": "of one engine step; empty for idle rows",
    "power_w": "of all GPUs of the server; empty where it was not measured",
    "kind": ", ".join(KINDS),
}
FILES = [
    (artifact.STEP_TREES, "correction of the step time: trees in LightGBM's text format"),
    (artifact.POWER_TREES, "correction of the power, the same way"),
    (
        artifact.MANIFEST,
        "what it is of and where it holds; written last, so that a half-written folder is refused",
    ),
    (artifact.PROFILE, "what it was fitted to, for refits; optional"),
    ("compiled-*.table", "both models at the clocks of this GPU, for a start without LightGBM: a cache"),
]


def page() -> str:
    return (
        f"# Files\n\n{NOTE}\n"
        "None of them is executed when it is read: JSON, CSV, LightGBM's text, SQLite, msgpack.\n\n"
        f"{_model()}\n\n{_profile()}\n\n{_versions()}\n\n{_recording()}\n\n{_ledger()}\n\n{_tap()}\n\n{_told()}\n"
    )


def manifest_keys() -> list[str]:
    """In the order in which they are written."""
    own = [one.name for one in fields_of(Manifest)]
    return own + _KEY.findall(inspect.getsource(artifact._document))


def _model() -> str:
    said = {one.name: one.said for one in fields_of(Manifest)}
    keys = [[f"`{key}`", MANIFEST.get(key) or said[key]] for key in manifest_keys()]
    return (
        "## Model\n\nThe folder that `kvwatt train` writes and `model.path` names.\n\n"
        + table(["file", "is"], ([f"`{name}`", told] for name, told in FILES))
        + f"\n\nKeys of `{artifact.MANIFEST}`:\n\n"
        + table(["key", "meaning"], keys)
    )


def _profile() -> str:
    columns = [[f"`{name}`", PROFILE[name]] for name in COLUMNS]
    return (
        "## Profile\n\nThe CSV that `kvwatt profile` writes and `kvwatt train` reads. Lines before "
        "the header that begin with `#` are notes.\n\n" + table(["column", "meaning"], columns)
    )


def _versions() -> str:
    return (
        "## Model versions\n\nRefitted models, per instance, under `state_dir/models`: `versions/N/` is "
        "a model with `version.json`, `current` the one that serves.\n\n"
        "### version.json\n\n"
        + table(["key", "type", "meaning"], rows(Record))
        + "\n\n### current\n\n"
        + table(["key", "type", "meaning"], rows(Current))
    )


def _recording() -> str:
    kinds = (lines.RunLine, lines.RequestLine, lines.GpuLine)
    return (
        f"## Recording\n\nVersion {lines.VERSION}. A file per UTC day in `record.dir`, "
        "`kvwatt-YYYY-MM-DD.jsonl`, one JSON object a line; `kind` is `run`, `request` or `gpu`. Times are "
        "seconds since 1970, UTC. No text, no caller.\n\n" + "\n\n".join(_struct(kind) for kind in kinds)
    )


def _ledger() -> str:
    return (
        f"## Ledger\n\n`state_dir/ledger.db`, SQLite, schema version {len(MIGRATIONS)}: a row of `entries` "
        "per instance and interval, added up by the hour and the day later. Whole numbers.\n\n"
        + table(["column", "type", "meaning"], rows(Entry))
    )


def _tap() -> str:
    return (
        f"## Tap records\n\nVersion {wire.VERSION}. One msgpack array a step in a unix datagram of at most "
        f"{wire.MAX_BYTES:,} bytes, fields in this order. Arrays may grow at their end.\n\n"
        + "\n\n".join(_struct(kind) for kind in (wire.Record, wire.Finished, wire.Started))
        + f"\n\nWith kvwatt's scheduler in vLLM another one comes once a second; its first field is "
        f"{wire.SCHEDULER_VERSION}.\n\n{_struct(wire.SchedulerRecord)}"
    )


def _told() -> str:
    return (
        f"## What the scheduler is told\n\n`{told.FILE_NAME}`, JSON, version {told.VERSION}, replaced every "
        f"few seconds by the daemon and believed for {told.FRESH_S:.0f} s.\n\n"
        + "\n\n".join(
            _struct(kind) for kind in (told.Message, told.Told, told.Lengths, told.Promises, told.StepCost)
        )
    )


def _struct(kind: type) -> str:
    said = " ".join((inspect.getdoc(kind) or "").split())
    return f"### {kind.__name__}\n\n{said}\n\n" + table(["field", "type", "meaning"], rows(kind))
