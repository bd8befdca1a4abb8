"""What REST and /metrics show of the ledger."""

from __future__ import annotations

from collections.abc import Iterable

from kvwattd.api.schemas.ledger import HoldoutView, LedgerView, MeasuredView
from kvwattd.instance import InstanceRuntime
from kvwattd.ledger.day import Ledger
from kvwattd.ledger.proof import Agreement


def ledger_view(ledger: Ledger, runs: Iterable[InstanceRuntime]) -> LedgerView:
    status = ledger.status
    if status is None:
        return LedgerView()
    return LedgerView(
        enabled=True,
        fault=status.fault,
        faults_total=status.faults + ledger.mistakes,
        written_total=status.written,
        waiting=ledger.waiting,
        dropped_total=status.dropped,
        damaged_total=status.set_aside,
        bytes=status.bytes or None,
        holdouts=[
            HoldoutView(instance=run.name, arm=run.holdout.arm, windows_total=run.holdout.windows)
            for run in runs
        ],
        measured=[_measured(found) for found in status.agreements],
    )


def _measured(found: Agreement) -> MeasuredView:
    m = found.measured
    return MeasuredView(
        instance=found.instance,
        baseline_j=m.baseline_j,
        saved_j=m.saved_j,
        low_j=m.low_j,
        high_j=m.high_j,
        level=m.level,
        windows=m.windows,
        model_saved_j=found.model_saved_j,
        disagrees=found.disagrees,
        attainment={str(metric): kept.ratio or 0.0 for metric, kept in found.attainment.items()},
    )
