"""One simulated GPU, a busy server on it, the real daemon, and what may be asked of the GPU's memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon_process import TOKEN, DaemonProcess, eventually
from damage import SmallDisk, WallClock
from fault_load import Load
from wrapped_daemon import STALL_ENV, TASKS_ENV

# Tests and benches import this file by its folder; what it needs itself stands in another one.
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

from host_stalls import lost_s  # see above

from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import SetterCall
from kvwatt_sim.server.launch import SimServer
from kvwattd.api.tokens import digest

LEASE_S = 2.0
# The lease, and what a machine with two busy cores may add to it.
LEASE_BOUND_S = LEASE_S + 1.5
FLOOR_MHZ, CEILING_MHZ = 900, 2400
# Wider than the defaults: a test machine's two cores serve, load and control at once.
POLL_S, SCRAPE_DEADLINE_S, STALE_AFTER_S = 0.25, 1.0, 2.0
# From a fault to driver default: stale at worst, then a tick and a reset.
FAILSAFE_BOUND_S = STALE_AFTER_S + SCRAPE_DEADLINE_S + 3.0
# The promises of the configuration below: any permitted clock keeps them under the load of these tests.
GENEROUS = {
    "ttft": {"limit_s": 6.0, "quantile": 0.95},
    "tbt": {"limit_s": 0.2, "quantile": 0.95},
    "e2e": {"limit_s": 60.0, "quantile": 0.95},
}
SET, RESET = "nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks"

CONFIGURATION = """
[daemon]
mode = "{mode}"
state_dir = "{folder}/state"
[api]
port = 0
token_file = "{folder}/tokens.toml"
[guard]
socket = "{folder}/guard.sock"
spawn = true
timeout_s = 1.0
lease_s = {lease_s}
[tap]
socket = "{folder}/tap.sock"
[holdout]
share = 0
[model]
path = "{model}"
reload_s = 0.5
[slo.ttft]
limit_s = 6.0
quantile = 0.95
[slo.tbt]
limit_s = 0.2
quantile = 0.95
[slo.e2e]
limit_s = 60.0
quantile = 0.95
[policy]
floor_mhz = {floor_mhz}
ceiling_mhz = {ceiling_mhz}
[[instance]]
name = "sim"
url = "{url}"
gpus = ["{gpu}"]
poll_s = {poll_s}
scrape_deadline_s = {scrape_deadline_s}
stale_after_s = {stale_after_s}
"""


def daemon_for(
    server: SimServer,
    folder: Path,
    model: Path,
    mode: str = "active",
    floor_mhz: int = FLOOR_MHZ,
    driver: bool = True,
    program: Sequence[str] = ("-m", "kvwattd"),
    environment: Mapping[str, str] | None = None,
    poll_s: float = POLL_S,
) -> DaemonProcess:
    """A daemon beside `server`, not started yet; it may write over REST with TOKEN."""
    values: dict[str, object] = {
        "mode": mode,
        "lease_s": LEASE_S,
        "model": model,
        "floor_mhz": floor_mhz,
        "ceiling_mhz": CEILING_MHZ,
        "url": server.base_url,
        "gpu": server.uuids[0],
        "poll_s": poll_s,
        "scrape_deadline_s": SCRAPE_DEADLINE_S,
        "stale_after_s": STALE_AFTER_S,
    }
    text = CONFIGURATION
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    known = {**(server.env() if driver else {}), **(environment or {})}
    daemon = DaemonProcess(folder, text, known, program)
    token = folder / "tokens.toml"
    token.write_text(f'[[token]]\nname = "tests"\nscope = "control"\nsha256 = "{digest(TOKEN)}"\n')
    token.chmod(0o600)
    return daemon


@dataclass(frozen=True)
class Moment:
    """When something was done to the stage, and what there was before."""

    t_s: float
    held_mhz: int | None
    log_length: int
    errors: dict[str, float]


@dataclass
class Stage:
    """Everything at once; tests leave it as `control` would find it."""

    server: SimServer
    gpus: SimGpus
    daemon: DaemonProcess
    disk: SmallDisk | None = None
    wall_clock: WallClock | None = None
    extra_load: Load | None = None

    @property
    def held_mhz(self) -> int | None:
        """Upper end of the locked range; None is driver default."""
        lock = self.gpus.lock_mhz(0)
        return lock[1] if lock is not None else None

    def control(self) -> dict[str, Any]:
        """Wait until the daemon holds a clock below the ceiling; the instance as it is then."""
        self.daemon.wait_for("active")
        eventually(
            lambda: self.held_mhz is not None and self.held_mhz < CEILING_MHZ,
            lambda: f"no lowered clock\n{self.daemon.describe()}",
        )
        return self.daemon.instance()

    def moment(self) -> Moment:
        errors = {
            labels["cause"]: value
            for labels, value in self.daemon.metrics().get("kvwatt_telemetry_errors_total", [])
        }
        return Moment(time.monotonic(), self.held_mhz, len(self.daemon.log()), errors)

    def default_within(self, limit_s: float, since_s: float) -> None:
        """Wait for driver default; fails when it comes later than `limit_s` after `since_s`.

        What the machine stood still meanwhile is added.
        """
        while self.held_mhz is not None:
            late_s = time.monotonic() - since_s
            assert late_s <= limit_s + lost_s(since_s), f"still {self.held_mhz} MHz after {late_s:.2f} s"
            time.sleep(0.01)

    def sets_since(self, t_s: float) -> list[SetterCall]:
        return [call for call in self.gpus.setter_log() if call.call == SET and call.t_s >= t_s]

    def resets_since(self, t_s: float) -> list[SetterCall]:
        return [call for call in self.gpus.setter_log() if call.call == RESET and call.t_s >= t_s]

    def said_since(self, moment: Moment) -> str:
        """Log written after the moment."""
        return self.daemon.log()[moment.log_length :]

    def nothing_lowered(self, since: Moment, default_s: float) -> None:
        """No clock below the one of that moment was set, and none at all after `default_s`."""
        calls = self.sets_since(since.t_s)
        lower = [c for c in calls if since.held_mhz is None or target_mhz(c) < since.held_mhz]
        assert not lower, lower
        late = [c for c in calls if c.t_s > default_s]
        assert not late, late

    def only_permitted_clocks(self) -> None:
        """Every setter call so far is the guard's, and every clock is supported and inside the bounds."""
        supported = set(self.gpus.spec(0).supported_mhz)
        for call in self.gpus.setter_log():
            assert call.call in (SET, RESET), call
            assert call.pid != self.daemon.process.pid, call
            if call.call == SET:
                low, high = (int(part) for part in call.args.split(","))
                assert {low, high} <= supported, call
                assert FLOOR_MHZ <= low <= high <= CEILING_MHZ, call


def target_mhz(call: SetterCall) -> int:
    """Upper end of the range that was asked for."""
    return int(call.args.split(",")[1])


Staging = Callable[..., AbstractContextManager[Stage]]  # starts a daemon, ends it with the block


@contextmanager
def damageable(
    server: SimServer, gpus: SimGpus, model: Path, folder: Path, poll_s: float = POLL_S
) -> Iterator[Stage]:
    """A running daemon whose disk, wall clock and event loop can be damaged."""
    clock, disk = WallClock(folder), SmallDisk(folder / "state")
    program = (str(Path(__file__).with_name("wrapped_daemon.py")),)
    environment = {**clock.environment(), STALL_ENV: str(2 * LEASE_S), TASKS_ENV: str(folder / "tasks")}
    daemon = daemon_for(server, folder, model, program=program, environment=environment, poll_s=poll_s)
    try:
        daemon.start()
        yield Stage(server, gpus, daemon, disk, clock)
    finally:
        daemon.close()
        disk.close()
