"""Facts of a machine on which everything is in place, to be broken one by one."""

from __future__ import annotations

from pathlib import Path

from kvwatt.manifest import Manifest
from kvwatt.state import GpuSample
from kvwattd.config import parse_config
from kvwattd.doctor.facts import (
    Facts,
    GpuFact,
    GuardFact,
    InstanceFact,
    ModelFact,
    PortFact,
    Privilege,
    TimeFact,
    TokenFact,
)
from kvwattd.guard.protocol import ClockState, GuardGpu, GuardHello, GuardStatus
from kvwattd.telemetry.nvml_reading import GpuInfo
from kvwattd.telemetry.vllm_metrics import LayoutReport

UUID = "GPU-5100a7e0-0000-4000-8000-000000000000"

CONFIG = parse_config(
    {
        "daemon": {"mode": "active"},
        "slo": {"tbt": {"limit_s": 0.1}},
        "instance": [{"name": "chat", "url": "http://127.0.0.1:8000", "gpus": ["0"]}],
    }
)
INFO = GpuInfo(
    uuid=UUID,
    index=0,
    name="NVIDIA L20",
    supported_mhz=(210, 1500, 2520),
    default_mhz=2520,
    power_limit_w=275.0,
    mig=False,
    persistence=True,
    driver_version="570.86",
)
SAMPLE = GpuSample(1.0, UUID, 2505, 200.0, 10.0, 55.0, 0.9, 0)
GPU = GpuFact("0", INFO, SAMPLE)
GUARD_GPU = GuardGpu(UUID, ClockState.DEFAULT, None, None, None)
STATUS = GuardStatus(1, 10.0, 2.0, None, None, 0, 0, (GUARD_GPU,))
GUARD = GuardFact(Path("/run/kvwatt/guard.sock"), GuardHello(1, 2.0, (UUID,), 210, 2520), STATUS)
LAYOUT = LayoutReport("v0.32", "0.32-0.33", (), (), (("0", "m"),))
INSTANCE = InstanceFact(CONFIG.instances[0], "0.32.0", LAYOUT)
MANIFEST = Manifest("NVIDIA L20", 1, 500, {"clock_mhz": (210.0, 2520.0)}, vllm_version="0.32.0")

HEALTHY = Facts(
    config=CONFIG,
    config_errors=(),
    driver_error="",
    gpus=(GPU,),
    privilege=Privilege(1000, cap_sys_admin=False),
    processes=(),
    time=TimeFact("tsc", 1e-9),
    guard=GUARD,
    instances=(INSTANCE,),
    model=ModelFact(Path("/var/lib/kvwatt/model"), exists=True, manifest=MANIFEST),
    port=PortFact("127.0.0.1", 8484),
    token=TokenFact(Path("/etc/kvwatt/tokens.toml"), 2),
)
