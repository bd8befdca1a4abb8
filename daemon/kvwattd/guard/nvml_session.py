"""One NVML session per process: handles by UUID, re-initialised after a lost GPU or a driver reload.

Blocking; call from a worker thread. Only reads here; the setters are in setters.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from kvwattd.guard.protocol import Code

T = TypeVar("T")
Handle = Any  # an opaque ctypes pointer of the binding

# After these the handle is dead: initialise again, fetch it by UUID, try once more.
_DEAD_HANDLE = frozenset(
    {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_UNINITIALIZED}
)
_LOST = frozenset({*_DEAD_HANDLE, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_GPU_NOT_FOUND})
_UNSUPPORTED = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_RESTART_INTERVAL_S = 1.0  # a GPU that stays lost must not keep pulling NVML from under the others
_INIT_LOCK_TIMEOUT_S = 1.0  # another thread may hang inside nvmlInit


class NvmlCallError(Exception):
    """An NVML call failed; `value` is NVML's own error number, 0 when the failure is ours."""

    def __init__(self, code: Code, message: str, value: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.value = value


def failure(error: pynvml.NVMLError, doing: str) -> NvmlCallError:
    """NVML's error as ours, with what to do where that is known."""
    value = int(error.value)
    text = f"{doing}: {error}"
    if value == pynvml.NVML_ERROR_NO_PERMISSION:
        hint = "clock setters need root or CAP_SYS_ADMIN; run the guard as root"
        return NvmlCallError(Code.NO_PERMISSION, f"{text} ({hint})", value)
    if value in _UNSUPPORTED:
        return NvmlCallError(Code.NOT_SUPPORTED, f"{text} (locked clocks need a Volta GPU or later)", value)
    if value in _LOST:
        return NvmlCallError(Code.GPU_LOST, text, value)
    return NvmlCallError(Code.NVML, text, value)


class NvmlSession:
    """Initialises NVML lazily and again when handles die; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = 0
        self._initialised = False
        self._restarted_s = -_RESTART_INTERVAL_S
        self._handles: dict[str, tuple[int, Handle]] = {}

    @property
    def generation(self) -> int:
        """Changes with each initialisation: whatever was cached before it is void."""
        return self._generation

    def run(self, uuid: str, doing: str, function: Callable[[Handle], T]) -> T:
        """`function(handle)`, once more on a fresh handle if the handle is dead. Raises NvmlCallError."""
        generation = self._generation
        try:
            return function(self.handle(uuid))
        except pynvml.NVMLError as error:
            if int(error.value) not in _DEAD_HANDLE:
                raise failure(error, f"GPU {uuid}: {doing}") from None
        try:
            self.restart(generation)
            return function(self.handle(uuid))
        except pynvml.NVMLError as error:
            raise failure(error, f"GPU {uuid}: {doing}, after initialising NVML again") from None

    def handle(self, uuid: str) -> Handle:
        """Raises pynvml.NVMLError."""
        self.start()
        known = self._handles.get(uuid)
        if known is not None and known[0] == self._generation:
            return known[1]
        generation = self._generation
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._handles[uuid] = (generation, handle)
        return handle

    def start(self) -> None:
        """Initialise NVML if it is not. Raises pynvml.NVMLError."""
        if self._initialised:
            return
        with _Held(self._lock):
            if not self._initialised:
                pynvml.nvmlInit()
                self._generation += 1
                self._initialised = True

    def restart(self, seen_generation: int) -> None:
        """Shut down and initialise again, unless that was done since `seen_generation` or a moment ago."""
        with _Held(self._lock):
            now_s = time.monotonic()
            due = now_s - self._restarted_s >= _RESTART_INTERVAL_S
            if self._generation == seen_generation and self._initialised and due:
                self._restarted_s = now_s
                self._initialised = False
                try:
                    pynvml.nvmlShutdown()
                except pynvml.NVMLError as error:
                    if int(error.value) != pynvml.NVML_ERROR_UNINITIALIZED:
                        raise
        self.start()

    def close(self) -> None:
        """Raises pynvml.NVMLError."""
        with _Held(self._lock):
            if self._initialised:
                self._initialised = False
                pynvml.nvmlShutdown()


class _Held:
    """A lock that is not waited for without end."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=_INIT_LOCK_TIMEOUT_S):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def supported_clocks_mhz(handle: Handle) -> tuple[int, ...]:
    """SM clocks that a lock accepts, ascending: those listed for the highest memory clock."""
    memory_mhz = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle), default=0)
    return tuple(sorted(set(pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory_mhz))))


def mig_enabled(handle: Handle) -> bool:
    """True when MIG is on; GPUs that know no MIG answer NOT_SUPPORTED."""
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as error:
        if int(error.value) in _UNSUPPORTED:
            return False
        raise
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def energy_mj(handle: Handle) -> int | None:
    """Since the driver was loaded; None on GPUs without the counter (before Volta)."""
    try:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except pynvml.NVMLError as error:
        if int(error.value) in _UNSUPPORTED:
            return None
        raise
