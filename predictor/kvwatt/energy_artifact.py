"""An energy model as text: one JSON object, the trees in LightGBM's own text within it.

Read by checks of our own, field by field, and the trees by `trees.read_trees`: nothing in it is executed and
no native parser sees it.
"""

from __future__ import annotations

import json
from typing import Any

from kvwatt.energy_model import FEATURES, EnergyModel, Prior
from kvwatt.energy_prior import WORK_TERMS, WorkLaw
from kvwatt.manifest import ManifestError, number, numbers, text, whole

SCHEMA = 1
MAX_CHARS = 16 << 20


class EnergyArtifactError(ValueError):
    """A text that is no energy model; names the key and what is accepted."""


def to_text(model: EnergyModel) -> str:
    """The model as JSON."""
    document = {
        "schema_version": SCHEMA,
        "features": list(FEATURES),
        "prior": str(model.prior),
        "usual_w": model.usual_w,
        "offset": model.offset,
        "rows": model.rows,
        "errors": dict(model.errors),
        "law": _law_values(model.law),
        "trees": model.trees,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def from_text(source: str) -> EnergyModel:
    """The reverse. Raises `EnergyArtifactError`."""
    if len(source) > MAX_CHARS:
        raise EnergyArtifactError(f"{len(source)} characters; at most {MAX_CHARS} are accepted")
    try:
        return _model(json.loads(source))
    except (ManifestError, ValueError, RecursionError) as error:  # TreesError and JSON's are ValueErrors
        raise EnergyArtifactError(f"no energy model: {error}") from error


def _model(data: object) -> EnergyModel:
    if not isinstance(data, dict):
        raise ManifestError("document", f"must be an object, got {type(data).__name__}")
    if whole(data, "schema_version", 1) != SCHEMA:
        raise ManifestError("schema_version", f"must be {SCHEMA}, got {data['schema_version']}")
    if data.get("features") != list(FEATURES):
        raise ManifestError("features", f"must be {list(FEATURES)}, got {data.get('features')!r:.200}")
    prior = text(data, "prior")
    if prior not in tuple(Prior):
        raise ManifestError("prior", f"must be one of {', '.join(Prior)}, got {prior!r}")
    errors, trees = data.get("errors"), data.get("trees")
    if not isinstance(errors, dict) or not isinstance(trees, str):
        raise ManifestError("errors, trees", "must be an object and a string")
    return EnergyModel(
        prior=Prior(prior),
        usual_w=number(data, "usual_w"),
        offset=number(data, "offset"),
        law=_law(data.get("law")),
        trees=trees,
        rows=whole(data, "rows", 0),
        errors={str(key): number(errors, key) for key in errors},
    )


def _law_values(law: WorkLaw | None) -> dict[str, Any] | None:
    if law is None:
        return None
    lists = {name: list(getattr(law, name)) for name in ("scale", "watts", "usual")}
    return {"reference_mhz": law.reference_mhz, "gpus": law.gpus, **lists}


def _law(data: object) -> WorkLaw | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ManifestError("law", f"must be an object or null, got {type(data).__name__}")
    lists = [numbers(data, name, WORK_TERMS) for name in ("scale", "watts", "usual")]
    return WorkLaw(number(data, "reference_mhz"), lists[0], lists[1], lists[2], number(data, "gpus"))
