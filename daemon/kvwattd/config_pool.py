"""The keys of [pool]: whether and how the number of running instances is decided (docs/instances.md)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvwattd.config_values import Count, Seconds, SecondsOrNever, Share, SocketPath, Watts

Word = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_.:@/-]+$")]
Server = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_.:-]+$")]
Argv = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


Sockets = Annotated[tuple[SocketPath, ...], Field(max_length=16)]

WorkloadName = Annotated[
    str, Field(pattern=r"^(Deployment|StatefulSet|LeaderWorkerSet)/[a-z0-9][a-z0-9.-]*$")
]


class BackendName(StrEnum):
    """What starts and stops instances."""

    PROCESS = "process"
    SYSTEMD = "systemd"
    KUBERNETES = "kubernetes"


class RouterName(StrEnum):
    """What spreads requests over them."""

    NONE = "none"
    HAPROXY = "haproxy"
    HTTP_SD = "http-sd"
    HOOKS = "hooks"


class Rest(StrEnum):
    """What becomes of an instance that is not needed."""

    STOP = "stop"
    SLEEP = "sleep"
    EITHER = "either"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HaproxyConfig(_Section):
    """HAProxy's runtime or master sockets and the backend whose servers the instances are."""

    sockets: Sockets = ()
    masters: Sockets = ()
    backend: Server = "vllm"


class HttpSdConfig(_Section):
    """How routers that follow /api/v1/pool/targets are waited for."""

    settle_s: Seconds = 30.0


class HooksConfig(_Section):
    """Commands of the operator's own router."""

    admit: Argv | None = None
    withdraw: Argv | None = None
    sessions: Argv | None = None
    timeout_s: Seconds = 10.0
    settle_s: SecondsOrNever = 0.0


class KubernetesConfig(_Section):
    """Where the objects are whose replicas the instances are; without a kubeconfig, the pod's own account."""

    namespace: Word = "default"
    kubeconfig: Path | None = None
    context: Word | None = None


class StartConfig(_Section):
    """What starts take and GPUs at rest draw, watts of one GPU.

    Times and `start_w` hold until they were measured; a power at rest that is set here is not measured.
    """

    start_s: Seconds = 120.0
    wake_s: Seconds = 5.0
    drain_s: Seconds = 30.0
    start_w: Watts = 100.0
    idle_w: Watts | None = None
    asleep_w: Watts | None = None
    stopped_w: Watts | None = None


class PoolConfig(_Section):
    """All of it; off unless `enabled`."""

    enabled: bool = False
    backend: BackendName = BackendName.PROCESS
    router: RouterName = RouterName.NONE
    rest: Rest = Rest.STOP
    minimum: Count = 1
    maximum: Count | None = None
    period_s: Seconds = 5.0
    cooldown_s: SecondsOrNever = 60.0
    less_for_s: SecondsOrNever = 60.0
    load_max: Share = 0.9
    survivors_load_max: Share = 0.8
    forecast_quantile: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.8
    stay_s: Seconds = 900.0
    day_s: Seconds = 86_400.0
    start_timeout_s: Seconds = 600.0
    retry_s: SecondsOrNever = 120.0
    drain_deadline_s: Seconds = 600.0
    drain_then: Literal["keep-waiting", "undrain", "stop-anyway"] = "keep-waiting"
    stop_timeout_s: Seconds = 120.0
    kill_after_s: SecondsOrNever = 60.0
    warm_up: bool = True
    sleep_level: Literal[1, 2] = 1
    expect: StartConfig = StartConfig()
    haproxy: HaproxyConfig = HaproxyConfig()
    http_sd: HttpSdConfig = HttpSdConfig()
    hooks: HooksConfig = HooksConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
