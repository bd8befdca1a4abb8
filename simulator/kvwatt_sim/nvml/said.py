"""What is said of a simulated GPU: a fault, its condition, one reading, one setter call.

Standard library only, as all of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from kvwatt_sim.nvml.layout import CALL_BYTES

Permission = Literal["root", "deny", "allow"]
Obedience = Literal["obey", "ignore", "wrong"]

ERRORS: Final[dict[str, int]] = {
    "SUCCESS": 0, "UNINITIALIZED": 1, "INVALID_ARGUMENT": 2, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4,
    "NOT_FOUND": 6, "INSUFFICIENT_SIZE": 7, "INSUFFICIENT_POWER": 8, "DRIVER_NOT_LOADED": 9, "TIMEOUT": 10,
    "IRQ_ISSUE": 11, "LIBRARY_NOT_FOUND": 12, "FUNCTION_NOT_FOUND": 13, "CORRUPTED_INFOROM": 14,
    "GPU_IS_LOST": 15, "RESET_REQUIRED": 16, "OPERATING_SYSTEM": 17, "LIB_RM_VERSION_MISMATCH": 18,
    "IN_USE": 19, "MEMORY": 20, "NO_DATA": 21, "INSUFFICIENT_RESOURCES": 23, "FREQ_NOT_SUPPORTED": 24,
    "ARGUMENT_VERSION_MISMATCH": 25, "DEPRECATED": 26, "NOT_READY": 27, "GPU_NOT_FOUND": 28,
    "INVALID_STATE": 29, "UNKNOWN": 999,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong when `call` (an NVML function, with or without its _vN; a prefix ending in '*'; or
    '*' for every call on the GPU) is made.

    The caller first waits `slow_s + hang_s` (math.inf: until the faults are cleared); then `error` is
    answered, if given. A setter that meets `obedience` "ignore" answers success and changes nothing;
    with "wrong" the clock goes somewhere else. The energy counter stands at zero under "ignore", and has
    jumped far ahead under "wrong". `count` limits how many calls meet the fault. `nvmlInit`, `nvmlShutdown`,
    `nvmlDeviceGetCount` and `nvmlSystemGetDriverVersion` meet faults of GPU 0, by exact name.
    """

    call: str
    error: str | None = None
    hang_s: float = 0.0
    slow_s: float = 0.0
    obedience: Obedience = "obey"
    count: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.call.encode()) < CALL_BYTES:
            raise ValueError(f"fault call = {self.call!r}: the name of an NVML function or '*' is needed")
        if self.error is not None and self.error not in ERRORS:
            raise ValueError(f"fault error = {self.error!r}: one of {', '.join(ERRORS)} is accepted")
        for key, value in (("hang_s", self.hang_s), ("slow_s", self.slow_s)):
            if not value >= 0:
                raise ValueError(f"fault {key} = {value!r}: a number >= 0 is needed")
        if self.obedience not in get_args(Obedience):
            raise ValueError(
                f"fault obedience = {self.obedience!r}: one of {get_args(Obedience)} is accepted"
            )
        if self.count is not None and self.count < 1:
            raise ValueError(f"fault count = {self.count}: at least 1 is needed")


@dataclass(frozen=True, slots=True)
class Health:
    """What NVML tells of a GPU's condition. Without `ecc` it knows no counters, rows or pages.

    Args:
        hidden_bytes: memory used by processes that NVML does not list here (another container).
        xid: a critical error that has just happened; 0: none.
        recovery_action: NVML_GPU_RECOVERY_ACTION_*.
    """

    ecc: bool = True
    ecc_corrected: int = 0
    ecc_uncorrected: int = 0
    retirement_pending: bool = False
    remapped_corrected: int = 0
    remapped_uncorrected: int = 0
    remap_pending: bool = False
    remap_failure: bool = False
    recovery_action: int = 0
    hidden_bytes: int = 0
    xid: int = 0


@dataclass(frozen=True, slots=True)
class SetterCall:
    """One call of an NVML setter: when, by whom, with what and what it answered."""

    t_s: float
    pid: int
    comm: str
    gpu: int
    call: str
    args: str
    result: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU at one moment. `energy_j` is exact; `visible_j` is what NVML's counter shows."""

    t_s: float
    clock_mhz: int
    load_clock_mhz: int
    lock_mhz: tuple[int, int] | None
    lock_pending: bool
    power_w: float
    average_w: float
    energy_j: float
    visible_j: float
    temperature_c: float
    cap_w: float
    compute: float
    memory: float
    busy: float
    memory_busy: float
    reasons: int
    faults: int
    permission: Permission
    recovered: int
