"""One AMD SMI session per process: handles by UUID, re-initialised after a lost GPU or a driver reload.

The same manners as nvml_session.py; GPUs are named "AMD-" and the UUID that `amd-smi list` shows. Blocking.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from kvwattd.guard import amd_library
from kvwattd.guard.amd_library import AmdLibrary, AmdSmiError, Handle
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.protocol import Code

log = logging.getLogger(__name__)

T = TypeVar("T")
PREFIX = "AMD-"
_RESTART_INTERVAL_S = 1.0  # a GPU that stays lost must not keep pulling the library from under the others
_LOCK_TIMEOUT_S = 1.0  # another thread may hang inside amdsmi_init


def is_amd(uuid: str) -> bool:
    return uuid.startswith(PREFIX)


def failure(error: AmdSmiError, doing: str) -> NvmlCallError:
    """AMD SMI's error as the guard knows driver errors, with what to do where that is known."""
    text = f"{doing}: {error}"
    if error.status == amd_library.NO_PERMISSION:
        hint = "clock limits need root; run the guard as root"
        return NvmlCallError(Code.NO_PERMISSION, f"{text} ({hint})", error.status)
    if error.status in amd_library.NOT_SUPPORTED:
        hint = "not on every AMD GPU, and not in a virtual machine"
        return NvmlCallError(Code.NOT_SUPPORTED, f"{text} ({hint})", error.status)
    if error.status in amd_library.DEAD:
        return NvmlCallError(Code.GPU_LOST, text, error.status)
    return NvmlCallError(Code.AMDSMI, text, error.status)


class AmdSession:
    """Loads and initialises the library lazily and again when handles die; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._library: AmdLibrary | None = None
        self._handles: dict[str, Handle] = {}
        self._initialised = False
        self._restarted_s = -_RESTART_INTERVAL_S
        self.generation = 0  # changes with each initialisation: whatever was cached before it is void

    def run(self, uuid: str, doing: str, function: Callable[[AmdLibrary, Handle], T]) -> T:
        """`function(library, handle)`, once more on a fresh handle if it is dead. Raises NvmlCallError."""
        generation = self.generation
        try:
            return function(*self._find(uuid))
        except AmdSmiError as error:
            if error.status not in amd_library.DEAD:
                raise failure(error, f"GPU {uuid}: {doing}") from None
        try:
            self._restart(generation)
            return function(*self._find(uuid))
        except AmdSmiError as error:
            raise failure(error, f"GPU {uuid}: {doing}, after initialising AMD SMI again") from None

    def close(self) -> None:
        """Raises NvmlCallError."""
        self._hold()
        try:
            if self._initialised and self._library is not None:
                self._initialised = False
                self._library.shut_down()
        except AmdSmiError as error:
            raise failure(error, "ending AMD SMI") from None
        finally:
            self._lock.release()

    def _find(self, uuid: str) -> tuple[AmdLibrary, Handle]:
        library = self._start()
        if uuid not in self._handles:
            found = {PREFIX + library.uuid(handle): handle for handle in library.handles()}
            if uuid not in found:
                raise AmdSmiError(f"GPU {uuid}", 31, f"not among {', '.join(sorted(found)) or 'any'}")
            self._handles = found
        return library, self._handles[uuid]

    def _start(self) -> AmdLibrary:
        if self._initialised and self._library is not None:
            return self._library
        self._hold()
        try:
            library = self._library or AmdLibrary()
            if not self._initialised:
                log.warning("AMD GPUs: setting their clocks was never tried on hardware (docs/hardware.md)")
                library.init()
                self._library, self._initialised, self._handles = library, True, {}
                self.generation += 1
            return library
        finally:
            self._lock.release()

    def _restart(self, seen_generation: int) -> None:
        self._hold()
        try:
            now_s = time.monotonic()
            due = now_s - self._restarted_s >= _RESTART_INTERVAL_S
            if self.generation == seen_generation and self._initialised and due and self._library is not None:
                self._restarted_s = now_s
                self._initialised = False
                self._library.shut_down()
        finally:
            self._lock.release()
        self._start()

    def _hold(self) -> None:
        if not self._lock.acquire(timeout=_LOCK_TIMEOUT_S):
            raise AmdSmiError("AMD SMI", 8, "another thread is still initialising it")
