"""The few functions of libamd_smi.so that kvwatt calls, by ctypes. UNTESTED ON HARDWARE.

Standard library only: AMD's own Python package resolves every symbol of the one library version that it was
made for, and prints; a root process is better off with what it needs. Only calls whose layout is the same in
AMD SMI 6.2, 6.4 and 7.0 are used (compared in the published `amdsmi` packages); the power reading is none of
them, so power is derived from the energy counter. Sources: docs/compatibility.md. Blocking.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

Handle = ctypes.c_void_p

SUCCESS = 0
NOT_SUPPORTED = frozenset({2, 3})  # and: not yet implemented
NO_PERMISSION = 10
DEAD = frozenset({31, 32, 34})  # not found, not initialised, driver not loaded: initialise, find, try again
_WORDS = {
    1: "invalid parameters",
    2: "not supported",
    8: "timeout",
    10: "permission denied",
    12: "I/O error",
    30: "device busy",
    31: "device not found",
    32: "not initialised",
    34: "driver not loaded",
}

INIT_GPUS = 2
CLK_GFX = 0
LIMIT_MIN, LIMIT_MAX = 0, 1
LEVEL_AUTO = 0
TEMP_HOTSPOT, TEMP_CURRENT, TEMP_CRITICAL = 1, 0, 5
_UUID_BYTES = 38
_PARTITION_BYTES = 16
_MOST_HANDLES = 64
_ROOM_BYTES = 8192  # more than any version's structure


class AmdSmiError(Exception):
    """A call that failed; `status` is AMD SMI's number, 0 when the library itself is not there."""

    def __init__(self, call: str, status: int, detail: str = "") -> None:
        words = detail or _WORDS.get(status, "unknown error")
        super().__init__(f"{call}: {words}" + (f" (status {status})" if status else ""))
        self.status = status


class ClockInfo(ctypes.Structure):
    """amdsmi_clk_info_t. MHz; the ends are those of the range in force, not of the hardware."""

    _fields_ = (
        ("clk", ctypes.c_uint32),
        ("min_clk", ctypes.c_uint32),
        ("max_clk", ctypes.c_uint32),
        ("clk_locked", ctypes.c_uint8),
        ("clk_deep_sleep", ctypes.c_uint8),
        ("reserved", ctypes.c_uint32 * 4),
    )


class EngineUsage(ctypes.Structure):
    """amdsmi_engine_usage_t. Percent."""

    _fields_ = (
        ("gfx_activity", ctypes.c_uint32),
        ("umc_activity", ctypes.c_uint32),
        ("mm_activity", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 13),
    )


class PowerCap(ctypes.Structure):
    """amdsmi_power_cap_info_t. Microwatts."""

    _fields_ = (
        ("power_cap", ctypes.c_uint64),
        ("default_power_cap", ctypes.c_uint64),
        ("dpm_cap", ctypes.c_uint64),
        ("min_power_cap", ctypes.c_uint64),
        ("max_power_cap", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 3),
    )


class AmdLibrary:
    """The loaded library. Every method raises AmdSmiError."""

    def __init__(self) -> None:
        self._library = _load()

    def init(self) -> None:
        self._call("amdsmi_init", ctypes.c_uint64(INIT_GPUS))

    def shut_down(self) -> None:
        self._call("amdsmi_shut_down")

    def handles(self) -> list[Handle]:
        """Every processor of every socket."""
        found: list[Handle] = []
        for socket in self._list("amdsmi_get_socket_handles"):
            found += self._list("amdsmi_get_processor_handles", socket)
        return found

    def uuid(self, handle: Handle) -> str:
        text = ctypes.create_string_buffer(_UUID_BYTES)
        length = ctypes.c_uint(_UUID_BYTES)
        self._call("amdsmi_get_gpu_device_uuid", handle, ctypes.byref(length), text)
        return text.value.decode("ascii", "replace")

    def clock(self, handle: Handle) -> ClockInfo:
        info = ClockInfo()
        self._call("amdsmi_get_clock_info", handle, ctypes.c_uint32(CLK_GFX), ctypes.byref(info))
        return info

    def performance_level(self, handle: Handle) -> int:
        level = ctypes.c_uint32()
        self._call("amdsmi_get_gpu_perf_level", handle, ctypes.byref(level))
        return int(level.value)

    def busy(self, handle: Handle) -> float:
        """0..1."""
        usage = EngineUsage()
        self._call("amdsmi_get_gpu_activity", handle, ctypes.byref(usage))
        return float(usage.gfx_activity) / 100.0

    def energy_uj(self, handle: Handle) -> float:
        """Since the driver was loaded."""
        count, unit_uj, at_ns = ctypes.c_uint64(), ctypes.c_float(), ctypes.c_uint64()
        pointers = (ctypes.byref(count), ctypes.byref(unit_uj), ctypes.byref(at_ns))
        self._call("amdsmi_get_energy_count", handle, *pointers)
        return float(count.value) * float(unit_uj.value)

    def power_cap_w(self, handle: Handle) -> float:
        info = PowerCap()
        self._call("amdsmi_get_power_cap_info", handle, ctypes.c_uint32(0), ctypes.byref(info))
        return float(info.power_cap) / 1e6

    def temperature_c(self, handle: Handle, metric: int = TEMP_CURRENT) -> int:
        celsius = ctypes.c_int64()
        kinds = (ctypes.c_uint32(TEMP_HOTSPOT), ctypes.c_uint32(metric))
        self._call("amdsmi_get_temp_metric", handle, *kinds, ctypes.byref(celsius))
        return int(celsius.value)

    def partition(self, handle: Handle) -> str:
        """How the compute units are divided: SPX is one whole GPU."""
        text = ctypes.create_string_buffer(_PARTITION_BYTES)
        self._call("amdsmi_get_gpu_compute_partition", handle, text, ctypes.c_uint32(_PARTITION_BYTES))
        return text.value.decode("ascii", "replace")

    def name(self, handle: Handle) -> str:
        """The GPU's, as it is sold."""
        return self._first_text("amdsmi_get_gpu_asic_info", handle)

    def driver(self, handle: Handle) -> str:
        """The kernel driver's version."""
        return self._first_text("amdsmi_get_gpu_driver_info", handle)

    def _first_text(self, call: str, handle: Handle) -> str:
        """The text that a structure begins with: what follows differs between versions, and has room here."""
        room = ctypes.create_string_buffer(_ROOM_BYTES)
        self._call(call, handle, room)
        return room.value.decode("utf-8", "replace")

    def function(self, name: str) -> ctypes._NamedFuncPointer | None:
        """A function that not every version has."""
        return getattr(self._library, name, None)

    def call(self, name: str, *arguments: object) -> None:
        """For the setters, which stand in amd_setters.py alone."""
        self._call(name, *arguments)

    def _list(self, name: str, *before: object) -> list[Handle]:
        count = ctypes.c_uint32(_MOST_HANDLES)
        handles = (ctypes.c_void_p * _MOST_HANDLES)()
        self._call(name, *before, ctypes.byref(count), handles)
        return [ctypes.c_void_p(value) for value in handles[: min(count.value, _MOST_HANDLES)]]

    def _call(self, name: str, *arguments: object) -> None:
        function = self.function(name)
        if function is None:
            raise AmdSmiError(name, 2, "this libamd_smi.so does not have it")
        status = int(function(*arguments))
        if status != SUCCESS:
            raise AmdSmiError(name, status)


def _load() -> ctypes.CDLL:
    tried = ("libamd_smi.so", "/opt/rocm/lib/libamd_smi.so")
    for name in tried:
        if "/" in name and not Path(name).exists():
            continue
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    detail = f"no {' or '.join(tried)} (package amd-smi-lib of ROCm)"
    raise AmdSmiError("loading AMD SMI", 0, detail)
