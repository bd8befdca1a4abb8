"""Reading cards from their TOML files: every number checked, every number with its provenance."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

from kvwatt_sim.cards.card import Card, CardError, Provenance
from kvwatt_sim.gpu import StepLaw
from kvwatt_sim.nvml.spec import PowerLaw

FOLDER = Path(__file__).parent
HOW = ("measured", "fitted", "assumed")

_GPU = (
    "memory_total_bytes",
    "memory_clock_mhz",
    "min_mhz",
    "max_mhz",
    "step_mhz",
    "boost_mhz",
    "idle_mhz",
    "power_cap_w",
    "min_cap_w",
    "max_cap_w",
    "parked_w",
    "switch_latency_s",
    "energy_update_s",
)
_ENGINE = ("weights_bytes", "kv_bytes_per_token", "block_size", "num_blocks", "max_model_len")
_POWER = tuple(item.name for item in fields(PowerLaw))
_STEP = tuple(item.name for item in fields(StepLaw))


def names() -> tuple[str, ...]:
    """The cards there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(name: str, tp: int = 1) -> Card:
    """The card `name` (see `names`) at tensor-parallel size `tp`. Raises CardError."""
    if name not in names():
        raise CardError(f"card = {name!r}: one of {', '.join(names())} is accepted")
    return load_file(FOLDER / f"{name}.toml", tp)


def load_file(path: Path, tp: int = 1) -> Card:
    """A card from a file of one's own. Raises CardError, OSError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: no TOML: {error}") from error
    try:
        return _card(document, tp)
    except ValueError as error:
        raise CardError(f"{path}: {error}") from error


def _card(document: Mapping[str, object], tp: int) -> Card:
    numbers = _Numbers(_table(document, "sources"))
    engines = _table(document, "engine")
    engine_key = f"tp{tp}"
    if engine_key not in engines:
        raise CardError(f"tp = {tp!r}: this card has {', '.join(sorted(engines))}")
    engine = dict(_table(engines, engine_key))
    step = _table(engine, "step")
    del engine["step"]
    gpu = numbers.read("gpu", _table(document, "gpu"), _GPU)
    power = numbers.read("power", _table(document, "power"), _POWER)
    shape = numbers.read(f"engine.{engine_key}", engine, _ENGINE)
    law = numbers.read(f"engine.{engine_key}.step", step, _STEP)
    return Card(
        name=_text(document, "name"),
        gpu_name=_text(document, "gpu_name"),
        arch=_text(document, "arch"),
        model=_text(document, "model"),
        tp=tp,
        supported_mhz=_clocks(gpu),
        boost_mhz=int(gpu["boost_mhz"]),
        idle_mhz=int(gpu["idle_mhz"]),
        memory_total_bytes=int(gpu["memory_total_bytes"]),
        memory_clock_mhz=int(gpu["memory_clock_mhz"]),
        power_cap_w=gpu["power_cap_w"],
        min_cap_w=gpu["min_cap_w"],
        max_cap_w=gpu["max_cap_w"],
        parked_w=gpu["parked_w"],
        switch_latency_s=gpu["switch_latency_s"],
        energy_update_s=gpu["energy_update_s"],
        block_size=int(shape["block_size"]),
        num_blocks=int(shape["num_blocks"]),
        max_model_len=int(shape["max_model_len"]),
        weights_bytes=int(shape["weights_bytes"]),
        kv_bytes_per_token=int(shape["kv_bytes_per_token"]),
        power=PowerLaw(**power),
        step=StepLaw(**law),
        provenance=MappingProxyType(numbers.provenance),
    )


class _Numbers:
    """Reads `{ value, how, source }` rows and keeps where each came from."""

    def __init__(self, sources: Mapping[str, object]) -> None:
        self._sources = sources
        self.provenance: dict[str, Provenance] = {}

    def read(self, place: str, table: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, float]:
        unknown = sorted(set(table) - set(keys))
        if unknown:
            raise CardError(f"{place}.{unknown[0]}: unknown key; accepted are {', '.join(keys)}")
        return {key: self._number(f"{place}.{key}", _table(table, key, place)) for key in keys}

    def _number(self, place: str, row: Mapping[str, object]) -> float:
        value, how, source = row.get("value"), row.get("how"), row.get("source")
        # Negative, infinite and NaN fail this as well.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise CardError(f"{place}.value = {value!r}: a finite number >= 0 is needed")
        if how not in HOW:
            raise CardError(f"{place}.how = {how!r}: one of {', '.join(HOW)} is accepted")
        if not isinstance(source, str) or source not in self._sources:
            raise CardError(f"{place}.source = {source!r}: one of {', '.join(self._sources)} is accepted")
        self.provenance[place] = Provenance(str(how), str(self._sources[source]))
        return float(value)


def _clocks(gpu: Mapping[str, float]) -> tuple[int, ...]:
    low, high, step = (int(gpu[key]) for key in ("min_mhz", "max_mhz", "step_mhz"))
    if not 0 < low <= high or step < 1 or (high - low) % step:
        raise CardError(
            f"gpu clocks {low} to {high} by {step} MHz: an ascending row that ends at max is needed"
        )
    return tuple(range(low, high + 1, step))


def _table(parent: Mapping[str, object], key: str, place: str = "") -> Mapping[str, object]:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise CardError(f"{f'{place}.' if place else ''}{key}: a table is needed, got {value!r}")
    return value


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise CardError(f"{key} = {value!r}: a text is needed")
    return value
