"""The other side of the simulated GPUs: what the plant publishes, what tests read, set and inject.

Standard library only, so that it can be imported inside a serving engine's own environment.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from kvwatt_sim.nvml.build import NvmlLibs, build
from kvwatt_sim.nvml.build import env_for as env_for
from kvwatt_sim.nvml.layout import (
    LOG_ENTRIES,
    CFault,
    CHealth,
    CLogEntry,
    CReading,
    CSpec,
    from_c,
    to_c,
)
from kvwatt_sim.nvml.said import ERRORS, Fault, Health, Obedience, Permission, Reading, SetterCall
from kvwatt_sim.nvml.spec import GpuSpec

_ERROR_NAMES = {number: name for name, number in ERRORS.items()}
# Fields that are the same on both sides.
_SAME = (Reading.__dataclass_fields__.keys() & {field[0] for field in CReading._fields_}) - {"permission"}


class SimGpus:
    """The GPUs in one state file; many processes may have it open. Not usable after `close`."""

    def __init__(self, library: ctypes.CDLL, state: ctypes.c_void_p, path: Path) -> None:
        self._library = library
        self._state: ctypes.c_void_p | None = state
        self.path = path
        self.count = self._count()[0]

    @classmethod
    def create(
        cls,
        path: Path,
        gpus: Sequence[GpuSpec],
        *,
        permission: Permission = "allow",
        manual_time: bool = False,
        mode: int = 0o600,
        libs: NvmlLibs | None = None,
    ) -> Self:
        """Makes 1 to 8 GPUs, idle, unlocked; replaces the file at `path`.

        With `manual_time` the GPUs' time stands still but for `advance`; else it is CLOCK_MONOTONIC.
        `mode` is the file's: all users who shall see the GPUs need to read and write it.
        """
        if not 1 <= len(gpus) <= 8:
            raise ValueError(f"{len(gpus)} GPUs: 1 to 8 can be simulated")
        if len({spec.uuid for spec in gpus}) < len(gpus):
            raise ValueError(f"uuids {[spec.uuid for spec in gpus]}: each GPU needs its own")
        library = _load(libs or build())
        specs = (CSpec * len(gpus))(*map(to_c, gpus))
        rank = _rank(permission)
        rc = library.kvws_create(
            os.fsencode(path), mode, specs, len(gpus), rank, int(manual_time), ctypes.c_double(0.0)
        )
        _check(rc, "create", path)
        return cls._map(library, path)

    @classmethod
    def open(cls, path: Path, libs: NvmlLibs | None = None) -> Self:
        """Joins GPUs that another process created. Raises OSError."""
        return cls._map(_load(libs or build()), path)

    @classmethod
    def _map(cls, library: ctypes.CDLL, path: Path) -> Self:
        state = ctypes.c_void_p()
        _check(library.kvws_open(os.fsencode(path), ctypes.byref(state)), "open", path)
        return cls(library, state, path)

    def close(self) -> None:
        """Unmaps the file. The GPUs live on."""
        if self._state is not None:
            self._library.kvws_close(self._state)
            self._state = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def spec(self, gpu: int) -> GpuSpec:
        """What this GPU was created as."""
        found = CSpec()
        self._call("kvws_spec_of", gpu, ctypes.byref(found))
        return from_c(found)

    def read(self, gpu: int) -> Reading:
        """Everything about a GPU, now."""
        c = CReading()
        self._call("kvws_read", gpu, ctypes.byref(c))
        return Reading(
            **{name: getattr(c, name) for name in _SAME},
            lock_mhz=(c.lock_min_mhz, c.lock_max_mhz) if c.lock_max_mhz else None,
            lock_pending=c.pending > 0,
            faults=c.n_faults,
            permission=get_args(Permission)[c.permission],
        )

    def clock_mhz(self, gpu: int) -> int:
        """SM clock now, as NVML shows it: on an idle GPU the idle clock."""
        return self.read(gpu).clock_mhz

    def load_clock_mhz(self, gpu: int) -> int:
        """SM clock at which a step would run that starts now: the driver raises an idle clock at once."""
        return self.read(gpu).load_clock_mhz

    def lock_mhz(self, gpu: int) -> tuple[int, int] | None:
        """Locked range in force, if any."""
        return self.read(gpu).lock_mhz

    def energy_j(self, gpu: int) -> float:
        """Exact energy since creation, up to now."""
        return self.read(gpu).energy_j

    def power_w(self, gpu: int) -> float:
        """Power drawn now."""
        return self.read(gpu).power_w

    def now_s(self) -> float:
        """Time of the GPUs."""
        return self._count()[1]

    def publish(self, gpu: int, compute: float, memory: float) -> None:
        """Sets the activity from now to the next call: shares of time (0..1) of compute-bound and of
        memory-bound work; 0, 0 is idle."""
        self._call("kvws_publish", gpu, ctypes.c_double(compute), ctypes.c_double(memory))

    def request_lock(self, gpu: int, lock_mhz: tuple[int, int] | None) -> None:
        """Locks or unlocks as an unseen other clock writer would: past permission, faults and log."""
        low, high = lock_mhz or (0, 0)
        self._call("kvws_request_lock", gpu, low, high)

    def set_power_cap_w(self, gpu: int, cap_w: float) -> None:
        """Sets the power cap within its constraints."""
        self._call("kvws_set_cap", gpu, ctypes.c_double(cap_w))

    def set_temperature(self, gpu: int, temperature_c: float | None) -> None:
        """Holds the temperature, or lets it follow the power again (None)."""
        value = math.nan if temperature_c is None else temperature_c
        self._call("kvws_set_temperature", gpu, ctypes.c_double(value))

    def set_process(self, gpu: int, pid: int, used_bytes: int) -> None:
        """Shows a compute process that holds GPU memory; 0 bytes removes it. The dead are not shown."""
        self._call("kvws_set_process", gpu, pid, ctypes.c_uint64(used_bytes))

    def set_health(self, gpu: int, health: Health) -> None:
        """Replaces what is wrong with the GPU; an `xid` is one event more."""
        values = {name: int(getattr(health, name)) for name in Health.__dataclass_fields__}
        self._call("kvws_set_health", gpu, ctypes.byref(CHealth(**values)))

    def set_permission(self, permission: Permission) -> None:
        """Who may call setters: root only, nobody, everybody."""
        self._check(self._library.kvws_set_permission(self._open_state(), _rank(permission)))

    def reload_driver(self, gpu: int) -> None:
        """What a driver reload leaves: no lock, default cap, the energy counter at zero."""
        self._call("kvws_reload_driver", gpu)

    def inject(self, gpu: int, fault: Fault) -> None:
        """Adds a fault; the first that matches a call is met."""
        c = CFault(
            call=fault.call.encode(),
            hang_s=fault.hang_s,
            slow_s=fault.slow_s,
            remaining=-1 if fault.count is None else fault.count,
            error=ERRORS[fault.error or "SUCCESS"],
            obedience=get_args(Obedience).index(fault.obedience),
        )
        self._call("kvws_inject", gpu, ctypes.byref(c))

    def clear_faults(self, gpu: int) -> None:
        """Takes all faults away and ends every hang."""
        self._call("kvws_clear_faults", gpu)

    def setter_log(self) -> list[SetterCall]:
        """The last setters called through NVML, oldest first; at most 1,024."""
        entries = (CLogEntry * LOG_ENTRIES)()
        n, total = ctypes.c_int(), ctypes.c_uint64()
        self._check(
            self._library.kvws_read_log(
                self._open_state(), entries, LOG_ENTRIES, ctypes.byref(n), ctypes.byref(total)
            )
        )
        return [_setter_call(entry) for entry in entries[: n.value]]

    def advance(self, seconds: float) -> None:
        """Lets time pass; only with manual time."""
        target_s = ctypes.c_double(self.now_s() + seconds)
        self._check(self._library.kvws_set_time(self._open_state(), target_s))

    def hold_mutex(self, seconds: float) -> None:
        """Blocks every user of the state: for tests of what a process leaves that dies in there."""
        self._check(self._library.kvws_hold_mutex(self._open_state(), ctypes.c_double(seconds)))

    def _count(self) -> tuple[int, float]:
        n, now_s = ctypes.c_int(), ctypes.c_double()
        self._check(self._library.kvws_count(self._open_state(), ctypes.byref(n), ctypes.byref(now_s)))
        return n.value, now_s.value

    def _open_state(self) -> ctypes.c_void_p:
        if self._state is None:
            raise ValueError(f"the simulated GPUs of {self.path} are closed")
        return self._state

    def _call(self, name: str, gpu: int, *args: object) -> None:
        self._check(getattr(self._library, name)(self._open_state(), gpu, *args), gpu)

    def _check(self, rc: int, gpu: int | None = None) -> None:
        what = "simulated GPUs" if gpu is None else f"simulated GPU {gpu}"
        _check(rc, what, self.path)


def _setter_call(entry: CLogEntry) -> SetterCall:
    result = _ERROR_NAMES.get(entry.result, str(entry.result))
    text = (entry.comm.decode(errors="replace"), entry.gpu, entry.call.decode(), entry.args.decode())
    return SetterCall(entry.t_s, entry.pid, *text, result)


def _rank(permission: Permission) -> int:
    accepted = get_args(Permission)
    if permission not in accepted:
        raise ValueError(f"permission = {permission!r}: one of {', '.join(accepted)} is accepted")
    return accepted.index(permission)


def _load(libs: NvmlLibs) -> ctypes.CDLL:
    library = ctypes.CDLL(str(libs.control))
    kinds = (CSpec, CReading, CFault, CLogEntry, CHealth)
    sizes = [ctypes.c_uint64() for _ in kinds]
    library.kvws_sizes(*map(ctypes.byref, sizes))
    expected = [ctypes.sizeof(kind) for kind in kinds]
    if [size.value for size in sizes] != expected:
        raise RuntimeError(f"{libs.control} has another layout than this Python code: remove {libs.dir}")
    return library


def _check(rc: int, what: str, path: Path) -> None:
    if rc == 0:
        return
    if rc == errno.EINVAL:
        raise ValueError(f"{what} of {path}: the value is out of range or not supported by this GPU")
    if rc == errno.EPROTO:
        raise OSError(rc, "not a state file of this version of the simulated GPUs", str(path))
    raise OSError(rc, f"{what}: {os.strerror(rc)}", str(path))
