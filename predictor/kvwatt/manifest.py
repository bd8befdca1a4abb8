"""What a model artifact says about itself: checked field by field when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 1
MOST = 1e300  # larger numbers are none: products with them are not finite
FEATURES = ("clock_mhz", "decode_batch", "context_tokens", "prefill_tokens")


class ManifestError(ValueError):
    """A field of a manifest is missing or out of range; `key` names it."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"{key}: {detail}")
        self.key = key


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where a model comes from and where it holds."""

    hardware: str
    tp: int
    rows: int
    ranges: Mapping[str, tuple[float, float]]  # smallest and largest value seen per profile column
    errors: Mapping[str, float] = field(default_factory=dict)  # cross-validated
    vllm_version: str = "unknown"
    model_name: str = "unknown"
    created: str = ""  # ISO 8601
    features: tuple[str, ...] = FEATURES
    schema_version: int = SCHEMA_VERSION

    @property
    def clock_range_mhz(self) -> tuple[float, float]:
        """The clocks the model was trained between."""
        return self.ranges["clock_mhz"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def manifest_from(data: object) -> Manifest:
    """A manifest from parsed JSON; raises `ManifestError`."""
    if not isinstance(data, dict):
        raise ManifestError("manifest", f"must be an object, got {type(data).__name__}")
    version = whole(data, "schema_version", 1)
    if version != SCHEMA_VERSION:
        raise ManifestError("schema_version", f"this kvwatt reads version {SCHEMA_VERSION}, got {version}")
    if data.get("features") not in (list(FEATURES), FEATURES):
        raise ManifestError("features", f"must be {list(FEATURES)}, got {data.get('features')!r:.200}")
    return Manifest(
        hardware=text(data, "hardware"),
        tp=whole(data, "tp", 1),
        rows=whole(data, "rows", 1),
        ranges=_ranges(data),
        errors={key: number(_object(data, "errors"), key) for key in _object(data, "errors")},
        vllm_version=text(data, "vllm_version"),
        model_name=text(data, "model_name"),
        created=text(data, "created"),
    )


def _ranges(data: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    ranges = {}
    for key in ("clock_mhz", "decode_batch", "kv_tokens", "prefill_tokens"):
        low, high = numbers(_object(data, "ranges"), key, 2)
        if not 0 <= low <= high:
            raise ManifestError(f"ranges.{key}", f"must be 0 <= low <= high, got {low} and {high}")
        ranges[key] = (low, high)
    if ranges["clock_mhz"][0] <= 0:
        raise ManifestError("ranges.clock_mhz", f"must be positive, got {ranges['clock_mhz']}")
    return ranges


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise ManifestError(key, f"must be an object, got {type(value).__name__}")
    return value


def text(data: Mapping[str, Any], key: str, limit: int = 200) -> str:
    """A short string."""
    value = data.get(key)
    if not isinstance(value, str) or len(value) > limit:
        raise ManifestError(key, f"must be a string of at most {limit} characters")
    return value


def number(data: Mapping[str, Any], key: str) -> float:
    """A finite number."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST:
        raise ManifestError(key, f"must be a finite number, got {value!r:.80}")
    return float(value)


def whole(data: Mapping[str, Any], key: str, lowest: int) -> int:
    """An integer of at least `lowest`."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value < 2**53:
        raise ManifestError(key, f"must be an integer >= {lowest}, got {value!r:.80}")
    return value


def numbers(data: Mapping[str, Any], key: str, count: int | None = None) -> tuple[float, ...]:
    """A list of finite numbers, of `count` elements when given."""
    value = data.get(key)
    if not isinstance(value, list | tuple) or (count is not None and len(value) != count):
        raise ManifestError(key, f"must be a list of {count if count is not None else 'finite'} numbers")
    return tuple(number({key: item}, key) for item in value)
