"""What the demonstration promises and how hard it drives its plants; every number with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvwatt.state import Slo, SloTarget

CARD = "l20"

# Requests per second of the built-in workload at which p99 TTFT reaches 3 s at the top clock: the
# capacity of the paper's setting; mean over three seeds of `python -m kvwatt_sim.demo.capacity`.
CAPACITY_PER_S = 3.1

# TTFT: 3 s, the p99 at capacity (half of the paper's setting). TBT: 0.2 s per token, slower than which
# reading stalls. E2E: 60 s, the p99 at capacity (54 to 78 s by seed).
SLO = Slo(ttft=SloTarget(3.0), tbt=SloTarget(0.2), e2e=SloTarget(60.0))

BASELINE, KVWATT = "baseline", "kvwatt"


class DemoError(RuntimeError):
    """The demonstration cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class PageOptions:
    """Where the daemon's page is (port 0: any free one), and whether all stays up after the result."""

    port: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise DemoError(f"--port {self.port}: 0 (any free one) to 65535 are accepted")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line said. `seconds` bounds everything, setup and stopping included."""

    seconds: float = 60.0
    load: float = 0.4
    seed: int = 0
    trace: Path | None = None
    json_file: Path | None = None
    page: PageOptions = field(default_factory=PageOptions)

    def __post_init__(self) -> None:
        if not 20.0 <= self.seconds <= 86_400.0:
            raise DemoError(f"--seconds {self.seconds:g}: 20 to 86400 are accepted")
        if not 0.0 < self.load <= 1.5:
            raise DemoError(f"--load {self.load:g}: a share of capacity above 0 and at most 1.5 is accepted")
        if self.seed < 0:
            raise DemoError(f"--seed {self.seed}: a whole number from 0 is accepted")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the time left after setup is spent: `warmup_s` and `arrivals_s` have requests coming."""

    warmup_s: float
    arrivals_s: float
    drain_s: float

    @property
    def bound_s(self) -> float:
        """From the first request to the end, whatever is unfinished then."""
        return self.warmup_s + self.arrivals_s + self.drain_s


def schedule(left_s: float) -> Schedule:
    """Arrivals stop early enough that most answers end: the longest ones take 20 to 40 s.

    Raises DemoError when setup has used up the time.
    """
    left_s -= STOP_RESERVE_S
    if left_s < MIN_SERVING_S:
        raise DemoError(
            f"setup left {max(left_s, 0.0):.0f} s for serving, {MIN_SERVING_S:g} s are needed: run it again "
            "(model and libraries are cached now) or give more --seconds"
        )
    drain_s = min(MAX_DRAIN_S, DRAIN_SHARE * left_s)
    warmup_s = min(MAX_WARMUP_S, WARMUP_SHARE * left_s)
    return Schedule(warmup_s, left_s - drain_s - warmup_s, drain_s)


STOP_RESERVE_S = 3.0  # to stop the daemon, its guard and two servers, and to print the table
MIN_SERVING_S = 8.0
# A daemon that has just started watches traffic at driver default until a few requests have finished.
# Beside a service that runs for days this is nothing, in a minute it would be a fifth: the warm-up has
# the same requests for both and is not measured (the saving with it is given too).
MAX_WARMUP_S = 9.0
WARMUP_SHARE = 0.2
MAX_DRAIN_S = 30.0
DRAIN_SHARE = 0.36
