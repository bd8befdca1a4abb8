"""Series of the daemon as a whole."""

from __future__ import annotations

from typing import get_args

from kvwattd.api.schemas import GuardState, StatusView
from kvwattd.api.series.base import Series, count, one, states
from kvwattd.config import Mode

STATUS_SERIES: tuple[Series[StatusView], ...] = (
    Series(
        "kvwatt_build_info",
        "Versions of kvwatt and Python; always 1.",
        lambda v: [((v.build.version, v.build.python), 1.0)],
        ("version", "python"),
    ),
    one("kvwatt_uptime_seconds", "Time since the daemon started, in seconds.", lambda v: v.uptime_s),
    states("kvwatt_mode", "1 for the mode the daemon is in, else 0.", "mode", Mode, lambda v: v.mode),
    count("kvwatt_ticks", "Ticks of the decision loop.", lambda v: v.ticks_total),
    Series(
        "kvwatt_tap_refused",
        "Tap datagrams that were no use, by cause.",
        lambda v: [((cause,), n) for cause, n in v.tap_refused_total.items()],
        ("cause",),
        counter=True,
    ),
    count("kvwatt_ticks_skipped", "Late ticks, skipped and not queued.", lambda v: v.ticks_skipped_total),
    states(
        "kvwatt_guard_state",
        "1 for the state of the connection to the guard, else 0.",
        "state",
        get_args(GuardState),
        lambda v: v.guard.state,
    ),
    count(
        "kvwatt_guard_errors", "Requests that the guard refused or missed.", lambda v: v.guard.errors_total
    ),
    one(
        "kvwatt_guard_alarms",
        "GPUs that the guard leaves alone now: another program's clock, or one that was not obeyed.",
        lambda v: len(v.guard.alarms),
    ),
    count(
        "kvwatt_guard_yields",
        "Times that the guard found another program's clock and left the GPU to it.",
        lambda v: v.guard.yields_total,
    ),
    count(
        "kvwatt_guard_clocks_not_obeyed",
        "Times that a GPU did not run at the clock that was set, and was reset.",
        lambda v: v.guard.disobeyed_total,
    ),
    count(
        "kvwatt_guard_driver_reloads",
        "Times that a clock was lost to a driver reload.",
        lambda v: v.guard.driver_reloads_total,
    ),
    one(
        "kvwatt_guard_lease_remaining_seconds",
        "Time until the guard resets clocks unless the lease is renewed, in seconds.",
        lambda v: v.guard.lease_left_s,
    ),
    one(
        "kvwatt_config_reload_success",
        "1 when the latest reload of the configuration succeeded, or none was tried; else 0.",
        lambda v: v.config.last is None or v.config.last.ok,
    ),
    one(
        "kvwatt_config_reload_timestamp_seconds",
        "When the configuration in force was read, in unix seconds.",
        lambda v: v.config.loaded_unix_s,
    ),
    one(
        "kvwatt_config_restart_pending",
        "Changed keys of the configuration that take effect only after a restart.",
        lambda v: len(v.config.last.restart) if v.config.last else 0,
    ),
    one(
        "kvwatt_settings_over_rest",
        "Settings made over REST that stand over the configuration.",
        lambda v: len(v.settings.slos) + (v.settings.mode is not None),
    ),
    count(
        "kvwatt_settings_errors",
        "Times that settings made over REST could not be read or written.",
        lambda v: v.settings.errors_total,
    ),
    one(
        "kvwatt_api_token_alarm",
        "1 while the newest version of the token file is not in force, else 0.",
        lambda v: v.security.token_alarm is not None,
    ),
    Series(
        "kvwatt_api_refused",
        "Calls for a change that were refused, by HTTP status.",
        lambda v: [((str(status),), n) for status, n in v.security.refused_total.items()],
        ("status",),
        counter=True,
    ),
    count("kvwatt_audit_records", "Records of the audit log.", lambda v: v.security.audit_records_total),
    count(
        "kvwatt_audit_errors",
        "Records of the audit log that could not be written to its file.",
        lambda v: v.security.audit_errors_total,
    ),
)
