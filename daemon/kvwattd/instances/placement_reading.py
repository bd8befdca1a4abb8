"""Who uses a GPU, and what is wrong with it, through NVML. Read only, blocking, without privilege."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pynvml

from kvwattd.guard.nvml_session import Handle, NvmlCallError, NvmlSession, failure, mig_enabled

T = TypeVar("T")
_UNSUPPORTED = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_RECOVERY_FIELD = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, unknown to older bindings
_RECOVERY = ("", "a reset", "a reboot", "a drain", "a drain and a reset", "recovery of the IMEX domain",
             "a reset of the bus", "a reboot")  # fmt: skip
# Critical errors of the hardware or its firmware (NVIDIA, "Xid Errors"), not those of programs.
HARDWARE_XIDS = {
    46: "the GPU stopped processing",
    48: "double-bit memory error",
    62: "internal microcontroller halt",
    64: "a memory row could not be remapped",
    74: "NVLink error",
    79: "fallen off the bus",
    95: "uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
    140: "unrecovered memory error",
}


@dataclass(frozen=True, slots=True)
class Use:
    """One look at one GPU.

    Args:
        compute: process id -> bytes, None where NVML does not tell; a name per process in `names`.
        graphics_bytes: used by processes that draw.
        used_bytes: of the memory, by anybody.
        problems: why it must not be used, in words; empty: none known.
    """

    uuid: str
    mig: bool
    compute: dict[int, int | None]
    names: dict[int, str]
    graphics_bytes: int
    used_bytes: int
    total_bytes: int
    lowest_mhz: int
    problems: tuple[str, ...]


def read_use(handle: Handle) -> Use:
    """Raises pynvml.NVMLError."""
    compute = _processes(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    graphics = _processes(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
    # The second version leaves the driver's own share out.
    memory = _optional(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2))
    memory = memory or pynvml.nvmlDeviceGetMemoryInfo(handle)
    clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(
        handle, max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle))
    )
    return Use(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        mig=mig_enabled(handle),
        compute=compute,
        names={pid: _name(pid) for pid in compute},
        graphics_bytes=sum(used or 0 for used in graphics.values()),
        used_bytes=int(memory.used),
        total_bytes=int(memory.total),
        lowest_mhz=min(clocks),
        problems=tuple(_problems(handle)),
    )


def _problems(handle: Handle) -> list[str]:
    """Counters that a GPU does not have say nothing."""
    found = []
    errors = _optional(
        lambda: pynvml.nvmlDeviceGetTotalEccErrors(
            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )
    )
    if errors:
        found.append(f"{errors} uncorrectable memory errors since the driver was loaded")
    if _optional(lambda: pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle)):
        found.append("memory pages are to be retired: it needs a reset")
    rows = _optional(lambda: pynvml.nvmlDeviceGetRemappedRows(handle))
    if rows is not None and rows[2]:
        found.append("memory rows are to be remapped: it needs a reset")
    if rows is not None and rows[3]:
        found.append("a memory row could not be remapped")
    action = _recovery_action(handle)
    if action:
        found.append(
            f"the driver asks for {_RECOVERY[action] if action < len(_RECOVERY) else f'action {action}'}"
        )
    return found


def _recovery_action(handle: Handle) -> int:
    fields = _optional(lambda: pynvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_FIELD]))
    if not fields or fields[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return 0
    return int(fields[0].value.uiVal)


def _processes(call: Callable[[Handle], list[object]], handle: Handle) -> dict[int, int | None]:
    found = _optional(lambda: call(handle)) or []
    return {int(item.pid): item.usedGpuMemory for item in found}  # type: ignore[attr-defined]


def _optional(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except pynvml.NVMLError as error:
        if int(error.value) in _UNSUPPORTED:
            return None
        raise


def _name(pid: int) -> str:
    try:
        return _text(pynvml.nvmlSystemGetProcessName(pid)).rpartition("/")[2][:40]
    except pynvml.NVMLError:
        return "?"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class XidWatch:
    """Hardware errors since it began to listen: there is no history to read. Blocking, one thread."""

    def __init__(self, session: NvmlSession) -> None:
        self._session = session
        self._generation = -1
        self._set: object | None = None
        self._registered: set[str] = set()
        self._seen: dict[str, str] = {}

    def look(self, uuids: list[str]) -> dict[str, str]:
        """UUID -> the last hardware error; forgotten when NVML is initialised anew. Raises NvmlCallError."""
        try:
            self._session.start()
            self._listen(uuids)
            while self._set is not None and self._take():
                pass
        except pynvml.NVMLError as error:
            raise failure(error, "listening for critical errors") from None
        return dict(self._seen)

    def _listen(self, uuids: list[str]) -> None:
        if self._generation != self._session.generation:
            self._generation = self._session.generation
            self._set = _optional(pynvml.nvmlEventSetCreate)
            self._registered.clear()
            self._seen.clear()
        for uuid in uuids:
            if uuid not in self._registered and self._set is not None:
                handle, events = self._session.handle(uuid), pynvml.nvmlEventTypeXidCriticalError
                _optional(lambda h=handle, e=events: pynvml.nvmlDeviceRegisterEvents(h, e, self._set))  # type: ignore[misc]
                self._registered.add(uuid)

    def _take(self) -> bool:
        """False when there is no more."""
        try:
            event = pynvml.nvmlEventSetWait_v2(self._set, 0)
        except pynvml.NVMLError as error:
            if int(error.value) == pynvml.NVML_ERROR_TIMEOUT:
                return False
            raise
        xid = int(event.eventData)
        if xid in HARDWARE_XIDS:
            uuid = _text(pynvml.nvmlDeviceGetUUID(event.device))
            self._seen[uuid] = f"Xid {xid} ({HARDWARE_XIDS[xid]})"
        return True


__all__ = ["HARDWARE_XIDS", "NvmlCallError", "Use", "XidWatch", "read_use"]
