"""Who changed what: settings made over REST, reloads of the configuration, the audit log."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kvwattd.api.schemas.base import View
from kvwattd.api.schemas.promises import SloView
from kvwattd.config import Mode


class AuditView(View):
    """One change, or a refused attempt at one."""

    time: str = Field(description="UTC, ISO 8601")
    unix_s: float
    who: str = Field(description="name of the token; 'anonymous' without a valid one; or the signal")
    client: str = Field(description="address of the caller, or how else it came")
    action: str = Field(description="method and path")
    outcome: Literal["done", "refused"]
    status: int = Field(description="HTTP status of the answer")
    before: Any = None
    after: Any = None
    detail: str | None = Field(None, description="why it was refused")


class SetView(View):
    """By whom and when a setting was made over REST."""

    by: str
    unix_s: float


class ModeSetView(SetView):
    mode: Mode


class SloSetView(SetView):
    slo: SloView


class SettingsView(View):
    """What was set over REST and stands over the configuration, across restarts, until it is deleted.

    DELETE /api/v1/mode and DELETE /api/v1/slos/INSTANCE go back to the configuration.
    """

    mode: ModeSetView | None = Field(None, description="null: the configuration's mode is in force")
    slos: dict[str, SloSetView] = Field(default_factory=dict)
    errors_total: int = Field(0, description="times the settings could not be read or written")
    last_error: str | None = Field(None, description="null while what is shown here is on disk too")


class ReloadView(View):
    """What the latest reload of the configuration came to; an error leaves the old one in force."""

    ok: bool
    unix_s: float
    applied: list[str] = Field(default_factory=list, description="keys that took effect at once")
    restart: list[str] = Field(default_factory=list, description="keys that take effect after a restart")
    overridden: list[str] = Field(
        default_factory=list, description="keys that were set over REST, which stands over the file"
    )
    errors: list[str] = Field(default_factory=list, description="why the file was refused")


class ConfigStateView(View):
    """The configuration file since the start."""

    reloads_total: int = 0
    failures_total: int = 0
    loaded_unix_s: float | None = Field(None, description="when the configuration in force was read")
    last: ReloadView | None = Field(None, description="null before the first reload")


class SecurityView(View):
    """State of the token file and of the audit log."""

    token_alarm: str | None = Field(None, description="why the newest token file is not in force")
    audit_records_total: int = 0
    audit_errors_total: int = 0
    audit_error: str | None = None
    refused_total: dict[int, int] = Field(default_factory=dict, description="refused calls by HTTP status")
