"""Which source files a result depends on: the imports of a module, followed. Part of bench/energy.py."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import kvwatt_sim

PACKAGES = ("kvwatt", "kvwattd", "kvwatt_sim")
SIMULATOR = Path(str(kvwatt_sim.__file__)).parent
REPLAY = "kvwatt_sim.replay"
# Beside the module of each policy itself: what every run depends on.
COMMON = (f"{REPLAY}.controller", f"{REPLAY}.scenario", "kvwatt_sim.traces")
HINDSIGHT = f"{REPLAY}.rivals.hindsight"
MODULES = {
    "kvwatt": (f"{REPLAY}.kvwatt_controller", f"{REPLAY}.models"),
    "bound": (f"{REPLAY}.oracle_bound",),
    "best-found": (f"{REPLAY}.oracle", HINDSIGHT),
    "best-fixed": (HINDSIGHT,),
    "best-pair": (HINDSIGHT,),
    "best-cap": (HINDSIGHT,),
    "voltana": (f"{REPLAY}.rivals.voltana",),
    "agft": (f"{REPLAY}.rivals.agft",),
    "throttllem": (f"{REPLAY}.rivals.throttllem",),
    "throttllem-15": (f"{REPLAY}.rivals.throttllem",),
    "throttllem-30": (f"{REPLAY}.rivals.throttllem",),
    "race-to-idle": (f"{REPLAY}.rivals.race",),
    "max": (),
}


@cache
def code_of(policy: str) -> str:
    """A digest of every file that a result of `policy` depends on; those of a policy nobody named here are
    those of all of them."""
    named = MODULES.get(policy, (f"{REPLAY}.policies",))
    data = [*(SIMULATOR / "replay" / "csrc").iterdir(), *(SIMULATOR / "cards").glob("*.toml")]
    data += [SIMULATOR / "replay" / "policies.py"]  # with which settings each is made
    digest = hashlib.sha256()
    for path in sorted({*files_of((*COMMON, *named)), *data}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def files_of(modules: Iterable[str]) -> set[Path]:
    """The files of these modules and of everything of ours that they import, wherever in a file they do.

    Of a package whose name only leads to a module, its own file but not what that imports besides."""
    found: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        path = _path(name)
        if name not in found and path is not None:
            found[name] = path
            todo += _imported(path)
    led = {path for name in found for above in _parents(name) if (path := _path(above)) is not None}
    return {*found.values(), *led}


@cache
def _path(module: str) -> Path | None:
    """None: no module, but a name in one."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)
