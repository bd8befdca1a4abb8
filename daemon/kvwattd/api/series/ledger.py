"""Series of the savings ledger."""

from __future__ import annotations

from collections.abc import Callable

from kvwatt.holdout import HELD
from kvwattd.api.schemas import StatusView
from kvwattd.api.schemas.ledger import HoldoutView, LedgerView, MeasuredView
from kvwattd.api.series.base import Samples, Series, one


def _of_ledger(
    name: str, help_: str, value: Callable[[LedgerView], float | None], *, counter: bool = False
) -> Series[StatusView]:
    return one(name, help_, lambda v: value(v.ledger) if v.ledger.enabled else None, counter=counter)


def _held(
    name: str, help_: str, value: Callable[[HoldoutView], float], *, counter: bool = False
) -> Series[StatusView]:
    def samples(view: StatusView) -> Samples:
        return [((item.instance,), value(item)) for item in view.ledger.holdouts]

    return Series(name, help_, samples, ("instance",), counter)


def _measured(name: str, help_: str, value: Callable[[MeasuredView], float]) -> Series[StatusView]:
    def samples(view: StatusView) -> Samples:
        return [((item.instance, item.baseline), value(item)) for item in view.ledger.measured]

    return Series(name, help_, samples, ("instance", "baseline"))


LEDGER_SERIES: tuple[Series[StatusView], ...] = (
    _of_ledger(
        "kvwatt_ledger_alarm",
        "1 while the ledger cannot be written, else 0.",
        lambda v: v.fault is not None,
    ),
    _of_ledger(
        "kvwatt_ledger_faults",
        "Times that the ledger could not be written.",
        lambda v: v.faults_total,
        counter=True,
    ),
    _of_ledger("kvwatt_ledger_intervals", "Intervals on the disk.", lambda v: v.written_total, counter=True),
    _of_ledger(
        "kvwatt_ledger_waiting_intervals", "Intervals that are not on the disk yet.", lambda v: v.waiting
    ),
    _of_ledger(
        "kvwatt_ledger_dropped_intervals",
        "Intervals lost because too many waited for the disk.",
        lambda v: v.dropped_total,
        counter=True,
    ),
    _of_ledger(
        "kvwatt_ledger_damaged_files",
        "Ledger files that were found damaged and set aside.",
        lambda v: v.damaged_total,
        counter=True,
    ),
    _of_ledger("kvwatt_ledger_size_bytes", "Size of the ledger, in bytes.", lambda v: v.bytes),
    _held(
        "kvwatt_holdout_active",
        "1 while the instance is held at driver default to measure what control saves, else 0.",
        lambda v: v.arm in HELD,
    ),
    _held(
        "kvwatt_holdout_windows",
        "Windows in which the instance was held at driver default.",
        lambda v: v.windows_total,
        counter=True,
    ),
    _measured(
        "kvwatt_energy_saved_measured_joules",
        "Energy saved in the time in control of the last week, in joules: measured against the baseline.",
        lambda v: v.saved_j,
    ),
    _measured(
        "kvwatt_energy_saved_measured_low_joules",
        "Lower end of its 99 % interval, in joules.",
        lambda v: v.low_j,
    ),
    _measured(
        "kvwatt_energy_saved_measured_high_joules",
        "Upper end of its 99 % interval, in joules.",
        lambda v: v.high_j,
    ),
    _measured(
        "kvwatt_savings_disagreement_alarm",
        "1 while the energy model's figure lies outside the measured interval, else 0.",
        lambda v: v.disagrees,
    ),
)
