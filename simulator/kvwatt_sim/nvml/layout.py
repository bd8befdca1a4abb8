"""The structures of `csrc/state.h` and `csrc/control.h`, seen from Python. Standard library only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

from kvwatt_sim.nvml.spec import ARCHITECTURES, MAX_CLOCKS, GpuSpec, PowerLaw

LAW_PARAMS = 16
CALL_BYTES = 64
LOG_ENTRIES = 1024

_Fields: TypeAlias = Sequence[tuple[str, Any]]


def _all(kind: type, names: str) -> _Fields:
    return [(name, kind) for name in names.split()]


class CSpec(ctypes.Structure):
    """kvws_spec."""

    _fields_: ClassVar[_Fields] = [
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 80),
        ("driver_version", ctypes.c_char * 80),
        ("memory_total_bytes", ctypes.c_uint64),
        ("law", ctypes.c_double * LAW_PARAMS),
        *_all(ctypes.c_double, "default_cap_w min_cap_w max_cap_w cap_w"),
        *_all(ctypes.c_double, "switch_latency_s idle_after_s energy_update_s"),
        *_all(ctypes.c_double, "ambient_c slowdown_c heat_rise_c thermal_tau_s"),
        *_all(ctypes.c_int32, "arch cuda_version memory_clock_mhz boost_mhz idle_mhz mig persistence"),
        ("n_clocks", ctypes.c_int32),
        ("clocks_mhz", ctypes.c_int32 * MAX_CLOCKS),
    ]


class CReading(ctypes.Structure):
    """kvws_reading."""

    _fields_: ClassVar[_Fields] = [
        *_all(ctypes.c_double, "t_s energy_j visible_j power_w average_w busy memory_busy"),
        *_all(ctypes.c_double, "temperature_c cap_w compute memory"),
        *_all(ctypes.c_int32, "clock_mhz load_clock_mhz lock_min_mhz lock_max_mhz"),
        *_all(ctypes.c_int32, "pending n_faults permission recovered"),
        ("reasons", ctypes.c_uint32),
        ("reserved", ctypes.c_int32),
    ]


class CFault(ctypes.Structure):
    """kvws_fault."""

    _fields_: ClassVar[_Fields] = [
        ("call", ctypes.c_char * CALL_BYTES),
        *_all(ctypes.c_double, "hang_s slow_s"),
        ("remaining", ctypes.c_int64),
        *_all(ctypes.c_int32, "error obedience"),
    ]


class CLogEntry(ctypes.Structure):
    """kvws_log_entry."""

    _fields_: ClassVar[_Fields] = [
        ("t_s", ctypes.c_double),
        *_all(ctypes.c_int32, "pid gpu result reserved"),
        ("comm", ctypes.c_char * 16),
        ("call", ctypes.c_char * CALL_BYTES),
        ("args", ctypes.c_char * 64),
    ]


class CHealth(ctypes.Structure):
    """kvws_health."""

    _fields_: ClassVar[_Fields] = [
        *_all(ctypes.c_uint64, "ecc_corrected ecc_uncorrected hidden_bytes xid xid_count"),
        *_all(ctypes.c_int32, "ecc retirement_pending"),
        *_all(ctypes.c_int32, "remapped_corrected remapped_uncorrected remap_pending remap_failure"),
        *_all(ctypes.c_int32, "recovery_action reserved"),
    ]


_SAME = (
    "memory_total_bytes", "default_cap_w", "min_cap_w", "max_cap_w", "switch_latency_s", "idle_after_s",
    "energy_update_s", "ambient_c", "heat_rise_c", "thermal_tau_s", "slowdown_c", "cuda_version",
    "memory_clock_mhz", "boost_mhz", "idle_mhz",
)  # fmt: skip
_TEXT = ("name", "uuid", "driver_version")


def to_c(spec: GpuSpec) -> CSpec:
    """The specification as the library takes it."""
    law = spec.power_law.as_array()
    same = {key: getattr(spec, key) for key in _SAME}
    text = {key: getattr(spec, key).encode() for key in _TEXT}
    return CSpec(
        **same,
        **text,
        law=(ctypes.c_double * LAW_PARAMS)(*law, *[0.0] * (LAW_PARAMS - 1 - len(law)), spec.parked_w),
        cap_w=spec.cap_w,
        arch=spec.arch_id,
        mig=int(spec.mig),
        persistence=int(spec.persistence),
        n_clocks=len(spec.supported_mhz),
        clocks_mhz=(ctypes.c_int32 * MAX_CLOCKS)(*spec.supported_mhz),
    )


def from_c(found: CSpec) -> GpuSpec:
    """The specification a GPU was created with."""
    architecture = {number: name for name, number in ARCHITECTURES.items()}
    n_params = len(PowerLaw.__dataclass_fields__)
    return GpuSpec(
        **{key: getattr(found, key) for key in _SAME},
        **{key: getattr(found, key).decode() for key in _TEXT},
        power_law=PowerLaw(*found.law[:n_params]),
        parked_w=found.law[LAW_PARAMS - 1],
        power_cap_w=found.cap_w,
        arch=architecture[found.arch],
        mig=bool(found.mig),
        persistence=bool(found.persistence),
        supported_mhz=tuple(found.clocks_mhz[: found.n_clocks]),
    )
