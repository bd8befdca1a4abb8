"""What the checks look at. Gathered by collect.py, written by hand in tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kvwatt.manifest import Manifest
from kvwatt.state import GpuSample
from kvwattd.config import Config, InstanceConfig
from kvwattd.guard.protocol import GuardHello, GuardStatus
from kvwattd.telemetry.nvml_reading import GpuInfo
from kvwattd.telemetry.vllm_metrics import LayoutReport


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"  # nothing to do, but worth knowing
    WARNING = "warning"  # works, but not as well as it could
    PROBLEM = "problem"  # does not work until something is done


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it unless it is fine."""

    check: str
    level: Level
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class GpuFact:
    """One GPU by UUID or index; without `info` it cannot be read, and `error` says why."""

    selector: str
    info: GpuInfo | None = None
    sample: GpuSample | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Privilege:
    euid: int
    cap_sys_admin: bool

    @property
    def may_set_clocks(self) -> bool:
        """NVML's setters ask for root; inside a container for CAP_SYS_ADMIN as well."""
        return self.euid == 0 and self.cap_sys_admin


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class GuardFact:
    socket: Path
    hello: GuardHello | None = None
    status: GuardStatus | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class InstanceFact:
    """One vLLM server as it answers; `layout` None: its metrics could not be read, `error` says why."""

    config: InstanceConfig
    version: str | None = None
    layout: LayoutReport | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModelFact:
    path: Path
    exists: bool
    manifest: Manifest | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class PortFact:
    """`error` empty: the port is free. `ours`: a kvwatt daemon answers there."""

    host: str
    port: int
    error: str = ""
    ours: bool = False
    tls: bool = False


@dataclass(frozen=True, slots=True)
class TokenFact:
    """`path` None: not configured."""

    path: Path | None = None
    tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class TimeFact:
    clocksource: str | None
    resolution_s: float


@dataclass(frozen=True, slots=True)
class PoolFact:
    """What backend and router tell. `states`: instance -> state and why; empty where it was not asked."""

    states: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    admitted: frozenset[str] | None = None
    router_error: str = ""
    error: str = ""
    under_systemd: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything. `config` None: none was given, or it was refused and `config_errors` says why."""

    config: Config | None
    config_errors: tuple[str, ...]
    driver_error: str
    gpus: tuple[GpuFact, ...]
    privilege: Privilege
    processes: tuple[Process, ...]
    time: TimeFact
    guard: GuardFact | None = None
    instances: tuple[InstanceFact, ...] = ()
    model: ModelFact | None = None
    port: PortFact | None = None
    token: TokenFact = field(default_factory=TokenFact)
    state_dir_error: str = ""
    pool: PoolFact = field(default_factory=PoolFact)
