"""Feeds an instance's account of energy from what the daemon has observed of it."""

from __future__ import annotations

from collections.abc import Mapping

from kvwatt.compiled import CompiledModel
from kvwatt.energy_table import TableEnergy
from kvwatt.state import GpuSample
from kvwattd.energy_account import EnergyAccount
from kvwattd.energy_followed import Told
from kvwattd.observation import Observation


def attribute(
    account: EnergyAccount,
    seen: Observation,
    samples: Mapping[str, GpuSample],
    compiled: CompiledModel | None,
) -> None:
    """Energy since the page before to the requests that caused it. Call once per page, after it."""
    if seen.snapshot is None:
        return
    energy_j = {uuid: sample.energy_j for uuid, sample in samples.items()}
    clock_mhz = float(min((sample.clock_mhz for sample in samples.values()), default=0))
    step = TableEnergy(compiled) if compiled is not None and clock_mhz > 0 else None
    account.on_page(seen.snapshot, seen.interval, energy_j, clock_mhz, step, _told(seen))


def _told(seen: Observation) -> Told | None:
    """Requests one by one, where the tap is relied on for them."""
    trusted = seen.judged is not None and seen.source == "tap" and seen.tap.progress.fault() is None
    return Told(seen.tap.progress.roll, seen.judged.finished) if seen.judged and trusted else None
