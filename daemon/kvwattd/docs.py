"""Writes docs/reference/*.md from the code: every configuration key, metric and REST call.

python -m kvwattd.docs            write them (in the root of a checkout)
python -m kvwattd.docs --check    exit code 1 where they are not up to date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.ports import ControlPlane
from kvwattd.api.prometheus import DURATION, START
from kvwattd.api.series import GPU_SERIES, INSTANCE_SERIES, LEDGER_SERIES, POOL_SERIES, STATUS_SERIES, Series
from kvwattd.api.tokens import TokenFile
from kvwattd.config import Config, InstanceConfig
from kvwattd.config_change import IN_PLACE, needs_restart
from kvwattd.config_errors import nested_model

EXAMPLE = Path("deploy/kvwatt.example.toml")
FOLDER = Path("docs/reference")
_NOTE = "Written by `python -m kvwattd.docs` from the code; edit that instead.\n"
_KEY = re.compile(r"^(?:# )?(?P<key>[a-z_0-9]+) = ")
_TABLE = re.compile(r"^(?:# )?\[+(?P<name>[a-z_.0-9]+)\]+$")


def pages(example: str) -> dict[str, str]:
    """File name -> text; `example` is the annotated example of the configuration."""
    return {
        "configuration.md": _configuration(example),
        "metrics.md": _metrics(),
        "rest.md": _rest(),
    }


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _configuration(example: str) -> str:
    meanings = _meanings(example)
    rows = (
        [f"`{key}`", _default(model, name), _effect(key), meanings[key]]
        for key, model, name in _keys(Config, "")
    )
    text = _table(["key", "default", "a change takes effect", "meaning"], rows)
    return (
        f"# Configuration keys\n\n{_NOTE}\n"
        "One TOML file; a scalar key may be overridden in the environment as `KVWATT_<SECTION>__<KEY>`. "
        "`instance` is a list, one entry per vLLM engine. *at once*: with the next reload (SIGHUP or "
        "`POST /api/v1/config/reload`).\n\n"
        f"{text}\n"
    )


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        if nested:
            yield from _keys(nested, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", model, name


def _default(model: type[BaseModel], name: str) -> str:
    default = model.model_fields[name].default
    if default is PydanticUndefined:
        return "required"
    return "none" if default is None else f"`{str(default).lower()}`"


def _effect(key: str) -> str:
    section, _, rest = key.partition(".")
    if needs_restart(key):
        return "after a restart"
    if section == "instance" and rest.split(".")[0] in set(InstanceConfig.model_fields) - IN_PLACE:
        return "at once, as another instance"
    return "at once"


def _meanings(example: str) -> dict[str, str]:
    """Dotted key -> the comment above it, or above the keys of its group."""
    found: dict[str, str] = {}
    section, comment, fresh = "", [""], True
    for line in example.splitlines():
        table, key = _TABLE.match(line), _KEY.match(line)
        if table:
            section = table["name"]
        elif key:
            found[f"{section}.{key['key']}"] = " ".join(comment).strip()
            fresh = True
        elif line.startswith("# "):
            comment = [line[2:]] if fresh else [*comment, line[2:]]
            fresh = False
        else:
            fresh = True
    return found


def _metrics() -> str:
    rows = [_series(one, "") for one in STATUS_SERIES]
    rows.append([f"`{DURATION[0]}`", "histogram", "–", DURATION[1]])
    rows += [_series(one, "") for one in POOL_SERIES]
    rows += [_series(one, "") for one in LEDGER_SERIES]
    rows.append([f"`{START[0]}`", "histogram", "kind, action", START[1]])
    rows += [_series(one, "instance") for one in INSTANCE_SERIES]
    rows += [_series(one, "instance, gpu") for one in GPU_SERIES]
    text = _table(["series", "type", "labels", "meaning"], rows)
    return f"# Metrics\n\n{_NOTE}\nServed at `/metrics`. What is unknown has no sample.\n\n{text}\n"


def _series(series: Series[Any], labels: str) -> list[str]:
    name = f"`{series.name}{'_total' if series.counter else ''}`"
    kind = "counter" if series.counter else "gauge"
    return [name, kind, ", ".join(filter(None, (labels, *series.labels))) or "–", series.help]


def _rest() -> str:
    plane = cast(ControlPlane, SimpleNamespace(status=None))
    paths: dict[str, Any] = create_app(plane, Access(TokenFile(None))).openapi()["paths"]
    rows = (
        [
            f"`{method.upper()} {path}`",
            _scope(operation),
            _body(operation),
            _said(operation),
        ]
        for path, item in paths.items()
        for method, operation in item.items()
    )
    text = _table(["call", "token", "body", "meaning"], rows)
    return (
        f"# REST calls\n\n{_NOTE}\n"
        "Types are in `/api/v1/openapi.json`; errors are problem details (RFC 9457). *read*: a token of "
        "either scope where `api.read_access` asks for one.\n\n"
        f"{text}\n"
    )


def _scope(operation: dict[str, Any]) -> str:
    if not operation.get("security"):
        return "none"
    return "control" if operation["tags"][0] in ("write", "audit") else "read"


def _body(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f"`{name}`" if name else "–"


def _said(operation: dict[str, Any]) -> str:
    return str(operation.get("description", "")).split("\n")[0] or f"{operation['summary']}."


def main(check: bool, root: Path) -> int:
    """Write the pages, or compare them with what is there."""
    stale = []
    for name, text in pages((root / EXAMPLE).read_text(encoding="utf-8")).items():
        path = root / FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.stderr.write(f"not up to date: {', '.join(stale)}; run python -m kvwattd.docs\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv[1:], Path.cwd()))
