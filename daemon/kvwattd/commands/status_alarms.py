"""What an operator should know before anything else: what stands over the file, what awaits a restart."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from kvwatt.holdout import HELD
from kvwattd.api.schemas import ConfigStateView, SecurityView, SettingsView, StatusView
from kvwattd.api.schemas.ledger import LedgerView


def alarms(status: StatusView) -> Iterator[tuple[str, bool]]:
    """One line each, and whether it is an error."""
    yield from _settings(status.settings)
    yield from _config(status.config)
    yield from _security(status.security)
    yield from _ledger(status.ledger)


def _settings(view: SettingsView) -> Iterator[tuple[str, bool]]:
    if view.mode is not None:
        told = f"mode {view.mode.mode}: overridden by REST at {_at(view.mode.unix_s)} by {view.mode.by}"
        yield f"{told}; back to the file: kvwatt mode configured", False
    for name, kept in view.slos.items():
        told = f"SLO of {name}: overridden by REST at {_at(kept.unix_s)} by {kept.by}"
        yield f"{told}; back to the file: kvwatt slo {name} --reset", False
    if view.last_error:
        yield f"settings: {view.last_error}", True


def _config(view: ConfigStateView) -> Iterator[tuple[str, bool]]:
    if view.last is None:
        return
    if not view.last.ok:
        yield f"configuration refused at {_at(view.last.unix_s)}: {'; '.join(view.last.errors)}", True
    if view.last.restart:
        yield f"in force only after a restart: {', '.join(view.last.restart)}", False


def _security(view: SecurityView) -> Iterator[tuple[str, bool]]:
    if view.token_alarm:
        yield f"tokens: {view.token_alarm}", True
    if view.audit_error:
        yield f"audit log: {view.audit_error}", True


def _ledger(view: LedgerView) -> Iterator[tuple[str, bool]]:
    if view.fault:
        yield f"ledger: {view.fault}; {view.waiting} intervals wait", True
    for held in view.holdouts:
        if held.arm in HELD:
            yield f"{held.instance}: held at driver default for a while, to measure what control saves", False
    for found in view.measured:
        if found.disagrees:
            model, low, high = (j / 3.6e6 for j in (found.model_saved_j, found.low_j, found.high_j))
            told = f"{model:.2f} kWh by the model, {low:.2f} to {high:.2f} measured"
            yield f"{found.instance}: saved {told}: train the model again", True


def _at(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
