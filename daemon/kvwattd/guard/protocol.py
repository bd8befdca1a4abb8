"""The guard's wire format, version 2: one JSON object per line, unix stream (docs/guard-protocol.md).

Version 2 only adds fields and one operation, so the guard still serves a client of version 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")

VERSION = 2
OLDEST_CLIENT = 1  # what the guard still serves
MAX_MESSAGE_BYTES = 16 * 1024
MAX_GPUS = 64
MAX_UUID_CHARS = 96


class Code(StrEnum):
    """Why a request was refused or failed."""

    BAD_MESSAGE = "bad_message"  # tells the key, the value and what is expected
    TOO_LARGE = "too_large"  # the connection is closed
    BAD_VERSION = "bad_version"  # a client older than what is served
    HELLO_FIRST = "hello_first"  # any other operation before it
    BUSY = "busy"  # another connection controls, or too many connections
    NOT_CONTROLLER = "not_controller"  # asked of a connection without the lease
    LEASE_EXPIRED = "lease_expired"  # everything was reset: say anew what is wanted
    UNKNOWN_GPU = "unknown_gpu"  # not on the guard's own list
    REFUSED_CLOCK = "refused_clock"  # out of bounds, or not supported; tells the nearest
    MIG = "mig"  # clocks of a divided GPU are nobody's alone
    NO_PERMISSION = "no_permission"  # NVML's: root, or CAP_SYS_ADMIN, is needed
    NOT_SUPPORTED = "not_supported"  # NVML's: this GPU locks no clocks
    GPU_LOST = "gpu_lost"  # NVML's, or a driver reload
    NVML = "nvml"  # any other error of NVML, in its words
    AMDSMI = "amdsmi"
    HUNG = "hung"  # an NVML call missed its deadline
    RESETTING = "resetting"  # an earlier reset of this GPU has not succeeded yet
    STATE_FILE = "state_file"  # the record cannot be written: nothing is set
    STOPPING = "stopping"  # the guard ends
    NOT_ALLOWED = "not_allowed"  # this user may not ask for that
    YIELDED = "yielded"  # another program sets this GPU's clocks
    DISOBEYED = "disobeyed"  # the GPU took a clock and did not run at it
    # the last two come from the client's side only
    UNREACHABLE = "unreachable"  # nobody listens at the socket
    TIMEOUT = "timeout"  # no answer in time


class GuardError(Exception):
    """A request that the guard refused, or that did not reach it."""

    def __init__(self, code: Code | str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = str(code)
        self.message = message


class Role(StrEnum):
    CONTROL = "control"
    STATUS = "status"


class ClockState(StrEnum):
    """What the guard knows about a GPU's clock lock."""

    DEFAULT = "default"  # nothing set by this guard
    SET = "set"  # locked by this guard
    RESETTING = "resetting"  # set once, reset not confirmed
    HUNG = "hung"  # an NVML call has not come back
    YIELDED = "yielded"  # another program's clock is on it: not written to for a while
    DISOBEYED = "disobeyed"  # at default after it did not run at what was set: not set for a while


@dataclass(frozen=True, slots=True)
class GuardHello:
    version: int  # spoken from now on
    lease_s: float  # how long a clock outlives its last renewal
    gpus: tuple[str, ...]  # that may be set
    min_mhz: int  # no clock below
    max_mhz: int  # no clock above


@dataclass(frozen=True, slots=True)
class GuardGpu:
    uuid: str
    state: ClockState
    floor_mhz: int | None  # lower end of the lock; None when not set
    target_mhz: int | None  # upper end of the lock; None when not set
    fault: str | None  # the last failure on this GPU, None after a success
    clock_mhz: int | None = None  # read back; None: not yet, or it could not be read
    limited_by: tuple[str, ...] = ()  # what holds the clock back now, in the words of `obedience.LIMITS`
    alarm: str | None = None  # why it is yielded or disobeyed
    retry_in_s: float | None = None  # until it may be set again; None without an alarm


@dataclass(frozen=True, slots=True)
class GuardStatus:
    version: int  # spoken by the guard
    uptime_s: float
    lease_s: float  # how long a clock outlives its last renewal
    lease_remaining_s: float | None  # None: no controller
    controller_pid: int | None  # None: no controller
    lease_expirations: int  # how often it ended without renewal
    rollbacks: int  # how often a group was put to default since one of it failed
    gpus: tuple[GuardGpu, ...]
    yields: int = 0  # how often another program's clock was found
    disobeyed: int = 0  # how often a GPU did not run at what was set
    driver_reloads: int = 0  # how often a lock was lost to one


Message = dict[str, object]


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Message:
    """One JSON object; raises GuardError(bad_message) on anything else."""
    try:
        message = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise GuardError(Code.BAD_MESSAGE, f"not a JSON object on one line: {error}") from None
    if not isinstance(message, dict):
        raise GuardError(Code.BAD_MESSAGE, f"expected a JSON object, got {type(message).__name__}")
    return message


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def int_field(message: Message, key: str) -> int:
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _bad(key, value, "an integer")
    return value


def str_field(message: Message, key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise _bad(key, value, "a string")
    return value


def float_field(message: Message, key: str) -> float:
    value = message.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1e15:
        raise _bad(key, value, "a finite number")
    return float(value)


def uuids_field(message: Message, key: str) -> tuple[str, ...]:
    """1 to MAX_GPUS distinct GPU UUIDs."""
    value = message.get(key)
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_GPUS:
        raise _bad(key, value, f"a list of 1 to {MAX_GPUS} GPU UUIDs")
    uuids = tuple(item for item in value if isinstance(item, str) and len(item) <= MAX_UUID_CHARS)
    if len(set(uuids)) != len(value):
        raise _bad(key, value, "distinct GPU UUIDs")
    return uuids


def _optional(message: Message, key: str, field: Callable[[Message, str], T]) -> T | None:
    return None if message.get(key) is None else field(message, key)


def _bad(key: str, value: object, expected: str) -> GuardError:
    return GuardError(Code.BAD_MESSAGE, f"{key} = {repr(value)[:80]}: expected {expected}")


def hello_fields(hello: GuardHello) -> Message:
    return {
        "version": hello.version,
        "lease_s": hello.lease_s,
        "gpus": list(hello.gpus),
        "min_mhz": hello.min_mhz,
        "max_mhz": hello.max_mhz,
    }


def parse_hello(message: Message) -> GuardHello:
    return GuardHello(
        version=int_field(message, "version"),
        lease_s=float_field(message, "lease_s"),
        gpus=uuids_field(message, "gpus"),
        min_mhz=int_field(message, "min_mhz"),
        max_mhz=int_field(message, "max_mhz"),
    )


def status_fields(status: GuardStatus) -> Message:
    return {
        "version": status.version,
        "uptime_s": status.uptime_s,
        "lease_s": status.lease_s,
        "lease_remaining_s": status.lease_remaining_s,
        "controller_pid": status.controller_pid,
        "lease_expirations": status.lease_expirations,
        "rollbacks": status.rollbacks,
        "yields": status.yields,
        "disobeyed": status.disobeyed,
        "driver_reloads": status.driver_reloads,
        "gpus": [_gpu_fields(gpu) for gpu in status.gpus],
    }


def _gpu_fields(gpu: GuardGpu) -> Message:
    return {
        "uuid": gpu.uuid,
        "state": str(gpu.state),
        "floor_mhz": gpu.floor_mhz,
        "target_mhz": gpu.target_mhz,
        "fault": gpu.fault,
        "clock_mhz": gpu.clock_mhz,
        "limited_by": list(gpu.limited_by),
        "alarm": gpu.alarm,
        "retry_in_s": gpu.retry_in_s,
    }


def parse_status(message: Message) -> GuardStatus:
    gpus = message.get("gpus")
    if not isinstance(gpus, list):
        raise _bad("gpus", gpus, "a list")
    return GuardStatus(
        version=int_field(message, "version"),
        uptime_s=float_field(message, "uptime_s"),
        lease_s=float_field(message, "lease_s"),
        lease_remaining_s=_optional(message, "lease_remaining_s", float_field),
        controller_pid=_optional(message, "controller_pid", int_field),
        lease_expirations=int_field(message, "lease_expirations"),
        rollbacks=int_field(message, "rollbacks"),
        gpus=tuple(_parse_gpu(gpu) for gpu in gpus),
        yields=int_field(message, "yields"),
        disobeyed=int_field(message, "disobeyed"),
        driver_reloads=int_field(message, "driver_reloads"),
    )


def _parse_gpu(message: object) -> GuardGpu:
    if not isinstance(message, dict):
        raise _bad("gpus", message, "objects")
    try:
        state = ClockState(str_field(message, "state"))
    except ValueError as error:
        raise GuardError(Code.BAD_MESSAGE, str(error)) from None
    return GuardGpu(
        uuid=str_field(message, "uuid"),
        state=state,
        floor_mhz=_optional(message, "floor_mhz", int_field),
        target_mhz=_optional(message, "target_mhz", int_field),
        fault=_optional(message, "fault", str_field),
        clock_mhz=_optional(message, "clock_mhz", int_field),
        limited_by=_words(message, "limited_by"),
        alarm=_optional(message, "alarm", str_field),
        retry_in_s=_optional(message, "retry_in_s", float_field),
    )


def _words(message: Message, key: str) -> tuple[str, ...]:
    value = message.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _bad(key, value, "a list of strings")
    return tuple(value)
