"""What a group of GPUs draws while its instance stands idle, sleeps, is stopped or starts, as it was read."""

from __future__ import annotations

from collections.abc import Mapping

from kvwatt.pool import Member, MemberStatus
from kvwattd.config_pool import StartConfig
from kvwattd.instance import GPU_STALE_S, InstanceRuntime

SETTLED_S = 5.0  # in a status before a reading counts: the driver lets the clock fall after a while
NEWEST_SHARE = 0.1


class RestPower:
    """Feed it the members at every plan; watts are of the whole group."""

    def __init__(self, runs: Mapping[str, InstanceRuntime], expect: StartConfig) -> None:
        self._runs = runs
        self._expect = expect
        self._watts: dict[tuple[str, MemberStatus], float] = {}
        self._gpus: dict[str, int] = {}

    def observe(self, members: tuple[Member, ...], now_s: float) -> None:
        """Fold in the newest reading of everyone that is at rest, or starts."""
        for member in members:
            run = self._runs[member.name]
            self._gpus[member.kind] = len(run.config.gpus)
            settled = now_s - member.since_s >= SETTLED_S or member.status is MemberStatus.STARTING
            resting = member.status is not MemberStatus.READY or member.running + member.waiting == 0
            fresh = run.samples and all(now_s - s.observed_s < GPU_STALE_S for s in run.samples.values())
            if not (settled and resting and fresh):
                continue
            watts = sum(sample.power_w for sample in run.samples.values())
            key = (member.kind, member.status)
            before = self._watts.get(key, watts)
            self._watts[key] = before + NEWEST_SHARE * (watts - before)

    def of(self, kind: str, status: MemberStatus) -> float | None:
        """The operator's figure where there is one, else as it was read, else None."""
        expect = self._expect
        told = {
            MemberStatus.READY: expect.idle_w,
            MemberStatus.ASLEEP: expect.asleep_w,
            MemberStatus.STOPPED: expect.stopped_w,
        }.get(status)
        return self._watts.get((kind, status)) if told is None else told * self._gpus.get(kind, 1)
