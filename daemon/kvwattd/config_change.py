"""What differs between two configurations, and what of it can take effect while running. Pure.

Live: mode, log level and format, tick, promises, policy, poll periods; instances come and go. An instance
whose server, GPUs or shape changes is given up, with its GPUs at driver default, and taken up anew. The rest
needs a restart and stays as it was until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvwattd.config import Config, InstanceConfig
from kvwattd.config_checks import cross_problems
from kvwattd.config_errors import ConfigError, ConfigProblem

LIVE_SECTIONS = frozenset({"daemon", "slo", "policy", "instance"})
RESTART_KEYS = frozenset({"daemon.state_dir"})
# Of [pool]: what the planner is told. Backend, router and members stay as they were until a restart.
LIVE_POOL = (
    "minimum",
    "maximum",
    "period_s",
    "cooldown_s",
    "less_for_s",
    "load_max",
    "survivors_load_max",
    "forecast_quantile",
    "stay_s",
)
# Changed in place; any other change of an instance is another instance.
IN_PLACE = frozenset({"slo", "poll_s", "scrape_deadline_s"})


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """`config` is to be in force. `dismissed` and `admitted` share the names of what is taken up anew."""

    config: Config
    applied: tuple[str, ...]
    restart: tuple[str, ...]
    dismissed: tuple[str, ...]
    admitted: tuple[InstanceConfig, ...]
    kept: tuple[InstanceConfig, ...]


def change_between(running: Config, wanted: Config) -> ConfigChange:
    """How to come from one to the other. Raises ConfigError where what awaits a restart is in the way."""
    merged = _merged(running, wanted)
    problems = list(cross_problems(merged))
    if problems:
        told = "together with what takes effect only after a restart: restart kvwatt instead of reloading it"
        raise ConfigError([ConfigProblem(p.key, p.value, f"{p.accepted}; {told}") for p in problems])
    _refuse_changed_pool(running, wanted)
    before, after = _settings(running), _settings(wanted)
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    keys = _shortened(keys, running, wanted)
    old = {item.name: item for item in running.instances}
    kept = tuple(item for item in wanted.instances if item.name in old and _same(old[item.name], item))
    names = {item.name for item in kept}
    return ConfigChange(
        config=merged,
        applied=tuple(key for key in keys if not needs_restart(key)),
        restart=tuple(key for key in keys if needs_restart(key)),
        dismissed=tuple(name for name in old if name not in names),
        admitted=tuple(item for item in wanted.instances if item.name not in names),
        kept=kept,
    )


def _refuse_changed_pool(running: Config, wanted: Config) -> None:
    """Members of a pool come and go only with a restart: their starts and drains are under way. Raises."""
    if not running.pool.enabled:
        return
    old = {item.name: item for item in running.instances}
    new = {item.name: item for item in wanted.instances}
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new or not _same(old[name], new[name]):
            told = (
                "as it is: with pool.enabled an instance comes, goes or changes only with a restart of kvwatt"
            )
            raise ConfigError([ConfigProblem("instance", name, told)])


def _merged(running: Config, wanted: Config) -> Config:
    daemon = wanted.daemon.model_copy(update={"state_dir": running.daemon.state_dir})
    held = {name: getattr(running, name) for name in Config.model_fields if name not in LIVE_SECTIONS}
    held["pool"] = running.pool.model_copy(update={name: getattr(wanted.pool, name) for name in LIVE_POOL})
    return wanted.model_copy(update={"daemon": daemon, **held})


def needs_restart(key: str) -> bool:
    """Whether a change of this key has to wait; `key` as in `ConfigChange.restart`."""
    if key.removeprefix("pool.") in LIVE_POOL:
        return False
    return not key.startswith(tuple(LIVE_SECTIONS)) or key in RESTART_KEYS


def _same(before: InstanceConfig, after: InstanceConfig) -> bool:
    """Whether it is the same server on the same GPUs, to be gone on with."""
    return before.model_dump(exclude=set(IN_PLACE)) == after.model_dump(exclude=set(IN_PLACE))


def _settings(config: Config) -> dict[str, object]:
    """Dotted key -> value; instances by name, for their places in the file mean nothing."""
    found = _flat(config.model_dump(mode="json", exclude={"instance"}), "")
    for item in config.instances:
        found |= _flat(item.model_dump(mode="json", exclude={"name"}), f"instance[{item.name}].")
    return found


def _shortened(keys: list[str], running: Config, wanted: Config) -> list[str]:
    """One word for an instance that comes or goes, instead of all its keys."""
    there = {item.name for item in running.instances}, {item.name for item in wanted.instances}
    whole = [f"instance[{name}]" for name in sorted(there[0] ^ there[1])]
    return [key for key in keys if not key.startswith(tuple(f"{name}." for name in whole))] + whole


def _flat(node: Mapping[str, object], prefix: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
