"""The daemon's configuration: one TOML file, overridden by KVWATT_<SECTION>__<KEY> in the environment.

Bad configuration is refused, never repaired: every error names the key, the value and what is accepted.
`deploy/kvwatt.example.toml` shows every key with its meaning and default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from kvwatt.state import Slo, SloTarget
from kvwattd.config_checks import cross_problems
from kvwattd.config_errors import ConfigError, ConfigProblem, nearest_hint, problems_from
from kvwattd.config_pool import Argv, PoolConfig, Server, WorkloadName
from kvwattd.config_values import (
    BaseUrl,
    Count,
    FileMode,
    GpuName,
    InstanceName,
    Megahertz,
    Port,
    Quantile,
    Ratio,
    Seconds,
    SecondsOrNever,
    SocketPath,
)
from kvwattd.ledger.config import HoldoutConfig, LedgerConfig
from kvwattd.money import CostConfig
from kvwattd.scheduler_link.config import SchedulerConfig

__all__ = [
    "ApiConfig",
    "Config",
    "ConfigError",
    "ConfigProblem",
    "DaemonConfig",
    "GuardConfig",
    "InstanceConfig",
    "Mode",
    "ModelConfig",
    "PolicyConfig",
    "PoolConfig",
    "RecordConfig",
    "SloConfig",
    "SloTargetConfig",
    "TapConfig",
    "load_config",
    "parse_config",
]

ENV_PREFIX = "KVWATT_"
_ENV_NAME = re.compile(rf"{ENV_PREFIX}(?P<section>[A-Z0-9]+?)__\w+", re.IGNORECASE)


class Mode(StrEnum):
    """What the daemon may do: nothing, decide and report only, or set clocks."""

    OFF = "off"
    SHADOW = "shadow"
    ACTIVE = "active"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DaemonConfig(_Section):
    mode: Mode = Mode.SHADOW
    tick_s: Seconds = 0.1
    state_dir: Path = Path("/var/lib/kvwatt")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


class ApiConfig(_Section):
    """Where REST and /metrics are served, and to whom."""

    tcp: bool = True
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8484
    socket: SocketPath | None = None
    socket_mode: FileMode = "0660"
    socket_group: str | None = None
    token_file: Path | None = None
    read_access: Literal["loopback", "token", "open"] = "loopback"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure_remote: bool = False
    writes_per_minute: Count = 60


class GuardConfig(_Section):
    socket: Path = Path("/run/kvwatt/guard.sock")
    spawn: bool = False
    timeout_s: Seconds = 0.5
    lease_s: Seconds = 2.0


class ModelConfig(_Section):
    path: Path = Path("/var/lib/kvwatt/model")
    reload_s: Seconds = 5.0
    refit_s: SecondsOrNever = 900.0


class TapConfig(_Section):
    """Where the plugin inside vLLM sends its records; without a socket there is no tap."""

    socket: SocketPath | None = None


class RecordConfig(_Section):
    """Where finished requests and GPU readings are kept for `kvwatt replay --record`."""

    dir: Path | None = None
    max_mb: Count = 1024


class SloTargetConfig(_Section):
    """At least `quantile` of requests stay within `limit_s`."""

    limit_s: Seconds
    quantile: Quantile = 0.99

    def target(self) -> SloTarget:
        return SloTarget(limit_s=self.limit_s, quantile=self.quantile)


class SloConfig(_Section):
    ttft: SloTargetConfig | None = None
    tbt: SloTargetConfig | None = None
    e2e: SloTargetConfig | None = None


class PolicyConfig(_Section):
    lower_dwell_s: Seconds = 1.0
    min_gain_ratio: Ratio = 0.01
    horizon_s: Seconds = 5.0
    margin: Ratio = 0.05
    floor_mhz: Megahertz | None = None
    ceiling_mhz: Megahertz | None = None
    switch_latency_s: Seconds = 0.2
    attainment_window_s: Seconds = 900.0


class InstanceConfig(_Section):
    """One vLLM engine and the GPUs it runs on."""

    name: InstanceName
    url: BaseUrl
    gpus: Annotated[tuple[GpuName, ...], Field(min_length=1, max_length=64)]
    tp: Count = 1
    engine: str | None = None
    model_name: str | None = None
    poll_s: Seconds = 0.5
    scrape_deadline_s: Seconds = 0.4
    stale_after_s: Seconds = 1.5
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 2048
    kind: InstanceName | None = None
    command: Argv | None = None
    server: Server | None = None
    workload: WorkloadName | None = None
    slo: SloConfig = SloConfig()


class Config(BaseSettings):
    """The whole configuration, validated and frozen."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    daemon: DaemonConfig = DaemonConfig()
    api: ApiConfig = ApiConfig()
    guard: GuardConfig = GuardConfig()
    model: ModelConfig = ModelConfig()
    tap: TapConfig = TapConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    record: RecordConfig = RecordConfig()
    ledger: LedgerConfig = LedgerConfig()
    holdout: HoldoutConfig = HoldoutConfig()
    cost: CostConfig = CostConfig()
    slo: SloConfig = SloConfig()
    policy: PolicyConfig = PolicyConfig()
    pool: PoolConfig = PoolConfig()
    instance: Annotated[tuple[InstanceConfig, ...], Field(min_length=1)]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @property
    def instances(self) -> tuple[InstanceConfig, ...]:
        return self.instance

    def slo_for(self, name: str) -> Slo:
        """The promises of one instance: its own targets, else the defaults under [slo]."""
        return self.slo_of(next(i for i in self.instance if i.name == name))

    def slo_of(self, item: InstanceConfig) -> Slo:
        return _slo(item.slo, self.slo)

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        problems = list(cross_problems(self))
        if problems:
            raise ConfigError(problems)
        return self


def _slo(own: SloConfig, default: SloConfig) -> Slo:
    ttft, tbt, e2e = own.ttft or default.ttft, own.tbt or default.tbt, own.e2e or default.e2e
    return Slo(
        ttft=ttft.target() if ttft else None,
        tbt=tbt.target() if tbt else None,
        e2e=e2e.target() if e2e else None,
    )


def _environment_problems(environ: Mapping[str, str]) -> Iterable[ConfigProblem]:
    """Variables that look like overrides but name no section would otherwise be ignored in silence."""
    for name, value in sorted(environ.items()):
        match = _ENV_NAME.fullmatch(name)
        if match and match["section"].lower() not in Config.model_fields:
            hint = nearest_hint(match["section"].lower(), Config.model_fields)
            yield ConfigProblem(name, value, f"{ENV_PREFIX}<SECTION>__<KEY> with a known section{hint}")


def parse_config(data: Mapping[str, Any]) -> Config:
    """Validate already parsed TOML; the environment overrides it. Raises ConfigError."""
    problems = list(_environment_problems(os.environ))
    # Arguments of pydantic-settings itself, which are no keys.
    problems += [ConfigProblem(key, data[key], "a known section") for key in data if key.startswith("_")]
    if problems:
        raise ConfigError(problems)
    try:
        return Config(**data)
    except ValidationError as error:
        raise ConfigError(problems_from(error, Config)) from error


def load_config(path: Path) -> Config:
    """Read and validate a configuration file. Raises ConfigError, which names what is wrong and where."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([ConfigProblem(str(path), error.strerror, "a readable TOML file")]) from error
    except (ValueError, RecursionError) as error:  # of the encoding, the format, a number of 5,000 digits
        raise ConfigError([ConfigProblem(str(path), str(error), "valid TOML in UTF-8")]) from error
    return parse_config(data)
