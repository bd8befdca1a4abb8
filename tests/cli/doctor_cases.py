"""What can be wrong with a machine, one thing at a time, and what doctor has to say of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from doctor_facts import (
    CONFIG,
    GPU,
    GUARD,
    GUARD_GPU,
    HEALTHY,
    INFO,
    INSTANCE,
    LAYOUT,
    MANIFEST,
    SAMPLE,
    STATUS,
)

from kvwattd.config import Config, Mode
from kvwattd.doctor.facts import (
    Facts,
    GuardFact,
    Level,
    ModelFact,
    PortFact,
    Privilege,
    Process,
    TimeFact,
    TokenFact,
)
from kvwattd.guard.protocol import GuardHello

ABSENT_GUARD = GuardFact(GUARD.socket, error="no such socket")


def with_daemon(**changes: Any) -> Config:
    return CONFIG.model_copy(update={"daemon": CONFIG.daemon.model_copy(update=changes)})


def with_guard(**changes: Any) -> Config:
    return CONFIG.model_copy(update={"guard": CONFIG.guard.model_copy(update=changes)})


def instance_with(**changes: Any) -> Facts:
    config = INSTANCE.config.model_copy(update=changes)
    return replace(HEALTHY, instances=(replace(INSTANCE, config=config),))


def model_with(**changes: Any) -> Facts:
    path = Path("/m")
    return replace(HEALTHY, model=ModelFact(path, exists=True, manifest=replace(MANIFEST, **changes)))


def gpu_with(**changes: Any) -> Facts:
    return replace(HEALTHY, gpus=(replace(GPU, info=replace(INFO, **changes)),))


def busy_at(clock_mhz: int, *, reasons: int = 0, utilization: float = 0.9, **changes: Any) -> Facts:
    sample = replace(SAMPLE, clock_mhz=clock_mhz, event_reasons=reasons, utilization=utilization)
    return replace(HEALTHY, gpus=(replace(GPU, sample=sample),), **changes)


CASES: list[tuple[str, Facts, str, Level, str]] = [
    (
        "driver",
        replace(HEALTHY, driver_error="NVML Shared Library Not Found", gpus=(), guard=None),
        "driver",
        Level.PROBLEM,
        "kvwatt demo",
    ),
    ("no GPU", replace(HEALTHY, gpus=()), "GPUs", Level.PROBLEM, "nvidia-smi -L"),
    (
        "unknown GPU",
        replace(HEALTHY, gpus=(replace(GPU, info=None, error="Not Found"),)),
        "GPU 0",
        Level.PROBLEM,
        "nvidia-smi -L",
    ),
    ("lost GPU", replace(HEALTHY, gpus=(replace(GPU, error="GPU is lost"),)), "GPU 0", Level.PROBLEM, "Xid"),
    ("MIG", gpu_with(mig=True), "GPU 0", Level.PROBLEM, "-mig 0"),
    ("persistence", gpu_with(persistence=False), "GPU 0", Level.WARNING, "nvidia-persistenced"),
    (
        "GPU named twice",
        replace(HEALTHY, gpus=(GPU, replace(GPU, selector=INFO.uuid))),
        "GPUs",
        Level.PROBLEM,
        "one instance only",
    ),
    (
        "spawn without root",
        replace(HEALTHY, config=with_guard(spawn=True), guard=ABSENT_GUARD),
        "permission",
        Level.PROBLEM,
        "as root",
    ),
    (
        "root without capability",
        replace(
            HEALTHY,
            config=with_guard(spawn=True),
            guard=ABSENT_GUARD,
            privilege=Privilege(0, cap_sys_admin=False),
        ),
        "permission",
        Level.PROBLEM,
        "as root",
    ),
    ("guard absent", replace(HEALTHY, guard=ABSENT_GUARD), "guard", Level.PROBLEM, "systemctl start"),
    (
        "guard absent in shadow mode",
        replace(HEALTHY, config=with_daemon(mode=Mode.SHADOW), guard=ABSENT_GUARD),
        "guard",
        Level.WARNING,
        "systemctl start",
    ),
    (
        "guard for another GPU",
        gpu_with(uuid="GPU-other"),
        "guard",
        Level.PROBLEM,
        "--gpu GPU-other",
    ),
    (
        "lease shorter than a tick",
        replace(HEALTHY, config=with_daemon(tick_s=3.0)),
        "guard",
        Level.PROBLEM,
        "--lease-s",
    ),
    (
        "guard could not reset",
        replace(
            HEALTHY,
            guard=replace(GUARD, status=replace(STATUS, gpus=(replace(GUARD_GPU, fault="reset failed"),))),
        ),
        "guard",
        Level.PROBLEM,
        "guard's log",
    ),
    (
        "zeusd",
        replace(HEALTHY, processes=(Process(7, "zeusd"),)),
        "other clock writers",
        Level.WARNING,
        "disable --now zeusd",
    ),
    (
        "DCGM",
        replace(HEALTHY, processes=(Process(7, "nv-hostengine"),)),
        "other clock writers",
        Level.NOTE,
        "dcgmi",
    ),
    ("clock limited by others", busy_at(1500), "other clock writers", Level.WARNING, "-rgc"),
    (
        "vLLM absent",
        replace(HEALTHY, instances=(replace(INSTANCE, layout=None, error="unreachable"),)),
        "vLLM chat",
        Level.PROBLEM,
        "curl",
    ),
    (
        "renamed metrics",
        replace(
            HEALTHY,
            instances=(
                replace(INSTANCE, layout=replace(LAYOUT, layout=None, missing=("vllm:kv_cache_usage_perc",))),
            ),
        ),
        "vLLM chat",
        Level.PROBLEM,
        "does not control",
    ),
    (
        "several engines",
        replace(
            HEALTHY,
            instances=(replace(INSTANCE, layout=replace(LAYOUT, engines=(("0", "m"), ("1", "m")))),),
        ),
        "vLLM chat",
        Level.PROBLEM,
        "engine '1'",
    ),
    (
        "an engine that tells less",
        replace(
            HEALTHY,
            instances=(replace(INSTANCE, layout=replace(LAYOUT, kind="SGLang", caveats=("no KV size",))),),
        ),
        "SGLang chat",
        Level.NOTE,
        "docs/compatibility.md",
    ),
    (
        "an engine that is not steered",
        replace(
            HEALTHY,
            instances=(
                replace(
                    INSTANCE, layout=replace(LAYOUT, layout=None, kind="TGI", missing=("no KV cache told",))
                ),
            ),
        ),
        "TGI chat",
        Level.PROBLEM,
        "not steered",
    ),
    (
        "an AMD GPU",
        replace(
            HEALTHY,
            gpus=(replace(GPU, info=replace(INFO, uuid="AMD-1")),),
            guard=replace(GUARD, hello=GuardHello(1, 2.0, ("AMD-1",), 210, 2520)),
        ),
        "GPU 0",
        Level.NOTE,
        "docs/hardware.md",
    ),
    ("wrong engine", instance_with(engine="5"), "vLLM chat", Level.PROBLEM, "engine '0'"),
    (
        "older vLLM",
        replace(
            HEALTHY,
            instances=(replace(INSTANCE, layout=replace(LAYOUT, absent_optional=("vllm:x",))),),
        ),
        "vLLM chat",
        Level.NOTE,
        "newer vLLM",
    ),
    (
        "no model",
        replace(HEALTHY, model=ModelFact(Path("/m"), exists=False, error="none")),
        "model",
        Level.WARNING,
        "kvwatt train",
    ),
    (
        "damaged model",
        replace(HEALTHY, model=ModelFact(Path("/m"), exists=True, error="not JSON")),
        "model",
        Level.PROBLEM,
        "again",
    ),
    ("model of other hardware", model_with(hardware="H200"), "model", Level.PROBLEM, "kvwatt profile"),
    ("model of other tp", model_with(tp=2), "model", Level.PROBLEM, "kvwatt profile"),
    ("model of other vLLM", model_with(vllm_version="0.27.1"), "model", Level.WARNING, "online"),
    (
        "model of other clocks",
        model_with(ranges={"clock_mhz": (300.0, 400.0)}),
        "model",
        Level.PROBLEM,
        "kvwatt profile",
    ),
    (
        "port in use",
        replace(HEALTHY, port=PortFact("127.0.0.1", 8484, "Address already in use")),
        "port",
        Level.PROBLEM,
        "api.port",
    ),
    ("open to others", replace(HEALTHY, port=PortFact("0.0.0.0", 8484)), "port", Level.WARNING, "tls_cert"),
    ("no token", replace(HEALTHY, token=TokenFact()), "token", Level.NOTE, "api.token_file"),
    (
        "token file that cannot be used",
        replace(HEALTHY, token=TokenFact(Path("/t"), error="may be read by others")),
        "token",
        Level.PROBLEM,
        "kvwatt token NAME",
    ),
    ("slow time", replace(HEALTHY, time=TimeFact("hpet", 1e-9)), "time", Level.WARNING, "tsc"),
    ("coarse time", replace(HEALTHY, time=TimeFact("tsc", 0.01)), "time", Level.PROBLEM, "clocksource"),
    (
        "bad configuration",
        replace(
            HEALTHY, config=None, config_errors=("daemon.tick_s: got -1",), guard=None, model=None, port=None
        ),
        "configuration",
        Level.PROBLEM,
        "example.toml",
    ),
    (
        "state folder",
        replace(HEALTHY, state_dir_error="/var/lib/kvwatt is not a folder"),
        "state folder",
        Level.WARNING,
        "daemon.state_dir",
    ),
]
