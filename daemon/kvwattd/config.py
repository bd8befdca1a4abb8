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
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from kvwatt.state import Slo, SloTarget
from kvwattd.config_errors import ConfigError, ConfigProblem, nearest_hint, problems_from

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
    "SloConfig",
    "SloTargetConfig",
    "TapConfig",
    "load_config",
    "parse_config",
]

ENV_PREFIX = "KVWATT_"
LONGEST_SOCKET_PATH = 107  # sockaddr_un
_ENV_NAME = re.compile(rf"{ENV_PREFIX}(?P<section>[A-Z0-9]+?)__\w+", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_GPU = re.compile(r"\d{1,3}|GPU-[0-9A-Za-z-]+")


class Mode(StrEnum):
    """What the daemon may do: nothing, decide and report only, or set clocks."""

    OFF = "off"
    SHADOW = "shadow"
    ACTIVE = "active"


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


def _socket_path(value: Path) -> Path:
    if not value.is_absolute() or len(os.fsencode(value)) > LONGEST_SOCKET_PATH:
        raise ValueError(f"must be an absolute path of at most {LONGEST_SOCKET_PATH} bytes")
    return value


def _base_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            "Input should be the server's base URL, http://HOST:PORT or https://HOST:PORT without path, "
            "user or password"
        )
    return value.rstrip("/")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            "Input should be 1 to 63 letters, digits or any of '_.-', the first a letter or digit"
        )
    return value


def _gpu(value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and text.startswith("MIG-"):
        raise ValueError("Input should be a whole GPU: MIG slices share one clock and cannot be controlled")
    if not isinstance(text, str) or not _GPU.fullmatch(text):
        raise ValueError('Input should be a GPU UUID ("GPU-...") or an index as a string ("0")')
    return text


_NUMBER = BeforeValidator(_no_bool)
Seconds = Annotated[float, _NUMBER, Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsOrNever = Annotated[float, _NUMBER, Field(ge=0, le=86_400, allow_inf_nan=False)]
Ratio = Annotated[float, _NUMBER, Field(ge=0, lt=1, allow_inf_nan=False)]
Quantile = Annotated[float, _NUMBER, Field(gt=0, lt=1, allow_inf_nan=False)]
Megahertz = Annotated[int, _NUMBER, Field(gt=0, le=10_000)]
Count = Annotated[int, _NUMBER, Field(ge=1, le=1_000_000)]
GpuName = Annotated[str, BeforeValidator(_gpu)]
InstanceName = Annotated[str, AfterValidator(_name)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DaemonConfig(_Section):
    mode: Mode = Mode.SHADOW
    tick_s: Seconds = 0.1
    state_dir: Path = Path("/var/lib/kvwatt")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


class ApiConfig(_Section):
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, _NUMBER, Field(ge=0, le=65_535)] = 8484
    token_file: Path | None = None


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

    socket: Annotated[Path, AfterValidator(_socket_path)] | None = None


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


class InstanceConfig(_Section):
    """One vLLM engine and the GPUs it runs on."""

    name: InstanceName
    url: Annotated[str, AfterValidator(_base_url)]
    gpus: Annotated[tuple[GpuName, ...], Field(min_length=1, max_length=64)]
    tp: Count = 1
    engine: str | None = None
    model_name: str | None = None
    poll_s: Seconds = 0.5
    scrape_deadline_s: Seconds = 0.4
    stale_after_s: Seconds = 1.5
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 2048
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
    slo: SloConfig = SloConfig()
    policy: PolicyConfig = PolicyConfig()
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
        own = next(i.slo for i in self.instance if i.name == name)
        return _slo(own, self.slo)

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        problems = [*_daemon_problems(self), *_instance_problems(self), *_ownership_problems(self)]
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


def _daemon_problems(config: Config) -> Iterable[ConfigProblem]:
    tick_s, lease_s, policy = config.daemon.tick_s, config.guard.lease_s, config.policy
    if lease_s <= tick_s:
        yield ConfigProblem("guard.lease_s", lease_s, f"more than daemon.tick_s ({tick_s} s)")
    if policy.floor_mhz and policy.ceiling_mhz and policy.floor_mhz > policy.ceiling_mhz:
        accepted = f"at most policy.ceiling_mhz ({policy.ceiling_mhz} MHz)"
        yield ConfigProblem("policy.floor_mhz", policy.floor_mhz, accepted)


def _instance_problems(config: Config) -> Iterable[ConfigProblem]:
    for index, item in enumerate(config.instance):
        key = f"instance[{index}]"
        if item.stale_after_s <= item.poll_s:
            accepted = f"more than {key}.poll_s ({item.poll_s} s)"
            yield ConfigProblem(f"{key}.stale_after_s", item.stale_after_s, accepted)
        if item.scrape_deadline_s >= item.stale_after_s:
            accepted = f"less than {key}.stale_after_s ({item.stale_after_s} s)"
            yield ConfigProblem(f"{key}.scrape_deadline_s", item.scrape_deadline_s, accepted)
        if len(item.gpus) % item.tp:
            accepted = f"a divisor of the number of GPUs in {key}.gpus ({len(item.gpus)})"
            yield ConfigProblem(f"{key}.tp", item.tp, accepted)
        if _slo(item.slo, config.slo) == Slo():
            accepted = (
                "at least one promise: [slo.ttft], [slo.tbt] or [slo.e2e] with limit_s, here or for all"
            )
            yield ConfigProblem(f"{key}.slo", "nothing", accepted)


def _ownership_problems(config: Config) -> Iterable[ConfigProblem]:
    names: dict[str, int] = {}
    owners: dict[str, str] = {}
    for index, item in enumerate(config.instance):
        if item.name in names:
            accepted = f"a name of its own (instance[{names[item.name]}] has it already)"
            yield ConfigProblem(f"instance[{index}].name", item.name, accepted)
        names.setdefault(item.name, index)
        for gpu in item.gpus:
            if gpu in owners:
                accepted = f"a GPU that no other entry owns (owned by instance {owners[gpu]!r})"
                yield ConfigProblem(f"instance[{index}].gpus", gpu, accepted)
            owners.setdefault(gpu, item.name)


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([ConfigProblem(str(path), str(error), "valid TOML in UTF-8")]) from error
    return parse_config(data)
