"""Series of shadow mode: what would be set, saved and kept. Estimates, all but the baseline."""

from __future__ import annotations

from collections.abc import Callable

from kvwattd.api.schemas import InstanceView
from kvwattd.api.schemas.shadow import ShadowView
from kvwattd.api.series.base import Samples, Series, hertz, one


def _would(name: str, help_: str, value: Callable[[ShadowView], float | None]) -> Series[InstanceView]:
    return one(name, help_, lambda v: value(v.shadow) if v.shadow is not None else None)


def _kept(view: InstanceView) -> Samples:
    told = view.shadow.attainment.items() if view.shadow is not None else ()
    return [((str(metric),), kept.ratio) for metric, kept in told]


SHADOW_SERIES: tuple[Series[InstanceView], ...] = (
    _would(
        "kvwatt_shadow_clock_hertz",
        "Clock that shadow mode decided on and did not set, in hertz; no sample for driver default.",
        lambda v: hertz(v.clock_mhz),
    ),
    _would(
        "kvwatt_shadow_energy_saved_estimate_joules",
        "Energy that control would have saved while in shadow mode, in joules: an estimate of the model.",
        lambda v: v.saved_j,
    ),
    _would(
        "kvwatt_shadow_energy_baseline_joules",
        "Energy used at driver default in the time in shadow mode, in joules, from the counters.",
        lambda v: v.baseline_j,
    ),
    _would(
        "kvwatt_shadow_energy_saved_estimate_ratio",
        "Share of the baseline that control would have saved: an estimate of the model.",
        lambda v: v.saved_ratio,
    ),
    _would(
        "kvwatt_shadow_energy_saved_estimate_low_ratio",
        "Lower end of its 95 % interval.",
        lambda v: v.low_ratio,
    ),
    _would(
        "kvwatt_shadow_energy_saved_estimate_high_ratio",
        "Upper end of its 95 % interval.",
        lambda v: v.high_ratio,
    ),
    Series(
        "kvwatt_shadow_slo_attainment_estimate_ratio",
        "Share of requests that would have been within the limit at the decided clocks: an estimate.",
        _kept,
        ("metric",),
    ),
)
