"""The guard's configuration: its own file (tomllib) or flags; every value checked before anything starts."""

from __future__ import annotations

import argparse
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvwattd.guard.gpulocks import default_folder
from kvwattd.guard.peers import Allowed, group_id, user_id
from kvwattd.guard.protocol import MAX_GPUS, MAX_UUID_CHARS

NOBODY_ELSE = Allowed()
ANY_MHZ = 10_000  # above every clock: then only what the GPU supports binds
_SUN_PATH_MAX = 107
STATE_FILE = "/var/lib/kvwatt-guard/state.json"
_KEYS = frozenset(
    {
        *("socket", "socket_mode", "users", "groups", "state_file", "lock_dir"),
        *("gpus", "min_mhz", "max_mhz", "lease_s", "nvml_deadline_s", "hold_off_s"),
    }
)
_UUID = re.compile(r"(GPU|AMD)-[0-9A-Za-z-]+")  # AMD: docs/compatibility.md
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class ConfigError(Exception):
    """A value that is not accepted; names key, value and what is accepted."""


@dataclass(frozen=True, slots=True)
class GuardConfig:
    socket: Path
    state_file: Path
    gpus: tuple[str, ...]
    min_mhz: int = 1
    max_mhz: int = ANY_MHZ
    lease_s: float = 2.0
    nvml_deadline_s: float = 0.35
    hold_off_s: float = 60.0
    socket_mode: int = 0o600
    allowed: Allowed = NOBODY_ELSE
    lock_dir: Path = Path("/run/kvwatt/locks")
    exit_on_disconnect: bool = False

    def __post_init__(self) -> None:
        _check(len(str(self.socket).encode()) <= _SUN_PATH_MAX, "socket", self.socket, "at most 107 bytes")
        _check(
            0 < len(self.gpus) <= MAX_GPUS, "gpus", self.gpus, f"1 to {MAX_GPUS} GPU UUIDs (nvidia-smi -L)"
        )
        for uuid in self.gpus:
            ok = _UUID.fullmatch(uuid) is not None and len(uuid) <= MAX_UUID_CHARS
            _check(
                ok,
                "gpus",
                uuid,
                "a GPU UUID such as GPU-8d6b... (nvidia-smi -L), not an index or a MIG device",
            )
        _check(len(set(self.gpus)) == len(self.gpus), "gpus", self.gpus, "distinct UUIDs")
        _check(1 <= self.min_mhz <= ANY_MHZ, "min_mhz", self.min_mhz, f"1 to {ANY_MHZ}")
        _check(self.min_mhz <= self.max_mhz <= ANY_MHZ, "max_mhz", self.max_mhz, f"min_mhz to {ANY_MHZ}")
        _check(0.2 <= self.lease_s <= 60.0, "lease_s", self.lease_s, "0.2 to 60")
        deadline_ok = 0.01 <= self.nvml_deadline_s <= self.lease_s
        _check(deadline_ok, "nvml_deadline_s", self.nvml_deadline_s, "0.01 to lease_s")
        _check(0.1 <= self.hold_off_s <= 86_400.0, "hold_off_s", self.hold_off_s, "0.1 to 86400")
        mode_ok = 0 <= self.socket_mode <= 0o777 and not self.socket_mode & 0o007
        _check(mode_ok, "socket_mode", f"{self.socket_mode:04o}", "an octal mode that gives others nothing")


def load(path: Path) -> dict[str, object]:
    """The file's values by key. Raises ConfigError, also where others than root could have written it."""
    _refuse_writable(path)
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    for key in sorted(values.keys() - _KEYS):
        raise ConfigError(f"{path}: {key} = {values[key]!r}: unknown key; known: {', '.join(sorted(_KEYS))}")
    return values


def _refuse_writable(path: Path) -> None:
    """File and folder belong to root (or to whom the guard runs as), and nobody else may write there."""
    for place in (path, path.absolute().parent):
        try:
            found = place.stat()
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from None
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{path}: owner of {place} = uid {found.st_uid}: expected root (chown root)")
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & _OTHERS_MAY_WRITE and not sticky:
            mode = stat.S_IMODE(found.st_mode)
            raise ConfigError(
                f"{path}: mode of {place} = {mode:04o}: expected writable by its owner only (chmod go-w)"
            )


def build(values: Mapping[str, object], exit_on_disconnect: bool = False) -> GuardConfig:
    """Raises ConfigError."""
    return GuardConfig(
        socket=Path(_text(values, "socket", "/run/kvwatt/guard.sock")),
        state_file=Path(_text(values, "state_file", STATE_FILE)),
        gpus=_uuids(values),
        min_mhz=_whole(values, "min_mhz", 1),
        max_mhz=_whole(values, "max_mhz", ANY_MHZ),
        lease_s=_number(values, "lease_s", 2.0),
        nvml_deadline_s=_number(values, "nvml_deadline_s", 0.35),
        hold_off_s=_number(values, "hold_off_s", 60.0),
        socket_mode=_mode(values),
        allowed=Allowed(_ids(values, "users", user_id), _ids(values, "groups", group_id)),
        lock_dir=Path(_text(values, "lock_dir", str(default_folder()))),
        exit_on_disconnect=exit_on_disconnect,
    )


def known_keys() -> list[str]:
    """Every key of the file, in the order of the documentation."""
    order = ["gpus", "min_mhz", "max_mhz", "lease_s", "nvml_deadline_s", "users", "groups", "hold_off_s"]
    return [*order, *sorted(_KEYS - set(order))]


def parser() -> argparse.ArgumentParser:
    """The flags of `kvwatt-guard`."""
    parser = argparse.ArgumentParser(
        prog="kvwatt-guard",
        description="Sets GPU clocks for kvwatt under a lease, and puts back what it set. Needs root.",
    )
    parser.add_argument("--config", type=Path, help="TOML file; flags override it")
    parser.add_argument("--socket", help="unix socket to listen on (default /run/kvwatt/guard.sock)")
    parser.add_argument("--socket-mode", help="octal mode of the socket (default 0600)")
    parser.add_argument(
        "--state-file", help="record of what was set (default /var/lib/kvwatt-guard/state.json)"
    )
    parser.add_argument(
        "--gpu", action="append", dest="gpus", metavar="UUID", help="allowed GPU; repeat for more"
    )
    parser.add_argument("--lock-dir", help="one lock file per GPU (default /run/kvwatt/locks for root)")
    parser.add_argument("--min-mhz", type=int, help="lowest clock ever set")
    parser.add_argument("--max-mhz", type=int, help="highest clock ever set")
    parser.add_argument(
        "--lease-s", type=float, help="clocks are reset when not renewed for this long (default 2)"
    )
    parser.add_argument(
        "--nvml-deadline-s", type=float, help="an NVML call hangs after this long (default 0.35)"
    )
    parser.add_argument(
        "--exit-on-disconnect", action="store_true", help="end when the starting process is gone"
    )
    parser.add_argument(
        "--reset-recorded", action="store_true", help="reset what the state file records, and end"
    )
    parser.add_argument(
        "--hold-off-s", type=float, help="a GPU with another writer is left alone this long (default 60)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="tell the running guard that it may set again what it left alone",
    )
    return parser


def parse_flags(argv: list[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """The namespace, and the values given by flags."""
    options = parser().parse_args(argv)
    return options, {key: value for key, value in vars(options).items() if key in _KEYS and value is not None}


def with_file(options: argparse.Namespace, flags: Mapping[str, object]) -> dict[str, object]:
    """The file's values, overridden by flags. Raises ConfigError."""
    return {**(load(options.config) if options.config is not None else {}), **flags}


def record_path(options: argparse.Namespace, flags: Mapping[str, object]) -> Path:
    """Where the record is, whatever is wrong with the file: what is on record must be undone all the same."""
    try:
        return Path(_text(with_file(options, flags), "state_file", STATE_FILE))
    except ConfigError:
        return Path(_text(flags, "state_file", STATE_FILE))


def _check(accepted: bool, key: str, value: object, expected: str) -> None:
    if not accepted:
        raise ConfigError(f"{key} = {value!r}: expected {expected}")


def _text(values: Mapping[str, object], key: str, default: str) -> str:
    value = values.get(key, default)
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise ConfigError(f"{key} = {value!r}: expected an absolute path")
    return value


def _uuids(values: Mapping[str, object]) -> tuple[str, ...]:
    value = values.get("gpus", [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"gpus = {value!r}: expected a list of GPU UUIDs")
    return tuple(value)


def _ids(values: Mapping[str, object], key: str, find: Callable[[str], int]) -> frozenset[int]:
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise ConfigError(f"{key} = {value!r}: expected a list of names or numbers")
    found = set()
    for item in value:
        try:
            found.add(find(str(item)))
        except KeyError:
            raise ConfigError(f"{key} = {item!r}: no such name on this machine") from None
    return frozenset(found)


def _whole(values: Mapping[str, object], key: str, default: int) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{key} = {value!r}: expected a whole number of MHz")
    return value


def _number(values: Mapping[str, object], key: str, default: float) -> float:
    value = values.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1e9:
        raise ConfigError(f"{key} = {repr(value)[:80]}: expected a number of seconds")
    return float(value)


def _mode(values: Mapping[str, object]) -> int:
    value = values.get("socket_mode", "0600")
    try:
        return int(value, 8) if isinstance(value, str) else int(str(value), 10)
    except ValueError:
        raise ConfigError(f'socket_mode = {value!r}: expected an octal string such as "0660"') from None
