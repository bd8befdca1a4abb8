"""Several simulated GPUs, and the configuration of a daemon that runs servers on them as needed."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kvwatt.state import Slo
from kvwatt_sim import cards
from kvwatt_sim.demo.daemon import promises, toml
from kvwatt_sim.demo.plant import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS
from kvwatt_sim.demo.settings import CARD
from kvwatt_sim.nvml.build import NvmlLibs
from kvwatt_sim.nvml.control import SimGpus, env_for
from kvwatt_sim.nvml.spec import demo_uuid
from kvwatt_sim.ports import free_ports


@dataclass(frozen=True, slots=True)
class PoolPace:
    """How fast the pool plans, in seconds of the wall clock; as [pool] has it."""

    period_s: float = 1.0
    cooldown_s: float = 5.0
    less_for_s: float = 3.0
    start_s: float = 2.0
    settle_s: float = 1.0
    start_timeout_s: float = 30.0
    load_max: float = 1.0
    survivors_load_max: float = 0.9
    forecast_quantile: float = 0.95
    drain_s: float = 30.0
    stay_s: float = 900.0
    day_s: float = 86_400.0


@dataclass
class Fleet:
    """GPUs in one state file, and a port for the server on each."""

    state: Path
    gpus: SimGpus
    env: dict[str, str]
    ports: tuple[int, ...]
    load_s: float = 0.0  # seconds that a simulated server loads its model
    haproxy: Path | None = None  # runtime socket; without one the list of /api/v1/pool/targets is followed

    @property
    def names(self) -> tuple[str, ...]:
        """Of the instances."""
        return tuple(f"chat{index + 1}" for index in range(len(self.ports)))

    def energy_j(self) -> float:
        """Of all GPUs, by their own counters."""
        return sum(self.gpus.read(index).visible_j for index in range(len(self.ports)))

    def power_w(self) -> float:
        """Of all GPUs now."""
        return sum(self.gpus.read(index).power_w for index in range(len(self.ports)))

    def command(self, index: int) -> list[str]:
        """What starts the server on this GPU."""
        options: dict[str, object] = {
            "card": CARD,
            "state": self.state,
            "gpu": index,
            "port": self.ports[index],
            "max-num-seqs": MAX_NUM_SEQS,
            "max-num-batched-tokens": MAX_NUM_BATCHED_TOKENS,
            "start-s": self.load_s,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "kvwatt_sim.server", *words]

    def configuration(
        self,
        folder: Path,
        model: Path,
        slo: Slo,
        pace: PoolPace,
        mode: str = "active",
        api: str = "[api]\nport = 0\n",
    ) -> str:
        """TOML of a daemon with this pool."""
        items = "".join(
            f"""
[[instance]]
name = "{name}"
url = "http://127.0.0.1:{port}"
gpus = ["{demo_uuid(index)}"]
max_num_seqs = {MAX_NUM_SEQS}
max_num_batched_tokens = {MAX_NUM_BATCHED_TOKENS}
scrape_deadline_s = 1.0
stale_after_s = 3.0
command = [{", ".join(toml(word) for word in self.command(index))}]
"""
            for index, (name, port) in enumerate(zip(self.names, self.ports, strict=True))
        )
        return f"""[daemon]
mode = "{mode}"
state_dir = {toml(folder / "state")}

{api}
[guard]
spawn = true
socket = {toml(folder / "guard.sock")}
timeout_s = 1.0

[model]
path = {toml(model)}
refit_s = 0
{promises(slo)}
[pool]
enabled = true
router = "{"http-sd" if self.haproxy is None else "haproxy"}"
haproxy.sockets = [{"" if self.haproxy is None else toml(self.haproxy)}]
period_s = {pace.period_s}
cooldown_s = {pace.cooldown_s}
less_for_s = {pace.less_for_s}
start_timeout_s = {pace.start_timeout_s}
retry_s = {pace.start_timeout_s}
day_s = {pace.day_s}
stay_s = {pace.stay_s}
forecast_quantile = {pace.forecast_quantile}
load_max = {pace.load_max}
survivors_load_max = {pace.survivors_load_max}
stop_timeout_s = {pace.start_timeout_s}
expect.start_s = {pace.start_s}
expect.drain_s = {pace.drain_s}
http_sd.settle_s = {pace.settle_s}
{items}"""


def make_fleet(stack: ExitStack, libs: NvmlLibs, folder: Path, count: int, load_s: float = 0.0) -> Fleet:
    """`count` GPUs, none of them used yet; `stack` takes them away again."""
    card, state = cards.load(CARD), folder / "pool.gpu"
    specs = [card.gpu_spec(demo_uuid(index), parks=True) for index in range(count)]
    gpus = stack.enter_context(SimGpus.create(state, specs, libs=libs))
    return Fleet(state, gpus, env_for(libs, state), free_ports(count), load_s)
