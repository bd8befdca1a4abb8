"""Nothing is exported, served or configured without a word in docs/reference; no text names what is not.

The reference is written from the code's own tables; here it is held against what comes out at the other end:
the metrics page, the routes, the schema of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.ports import ControlPlane
from kvwattd.api.prometheus import registry_of
from kvwattd.api.schemas import BuildView, InstanceView, StatusView
from kvwattd.api.tokens import TokenFile
from kvwattd.config import Config, Mode
from kvwattd.docs import FOLDER

ROOT = Path(__file__).parents[2]


def exported() -> set[str]:
    """Names on the page of a daemon that has seen nothing yet: a series without a sample has its HELP."""
    status = StatusView(build=BuildView(version="1", python="3"), mode=Mode.SHADOW, uptime_s=0.0)
    families = list(registry_of(lambda: status).collect())
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def rows(name: str) -> list[str]:
    """First cells of a page's table."""
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / FOLDER / name).read_text(encoding="utf-8"), re.MULTILINE)


def test_what_is_exported_is_documented_and_the_other_way_round() -> None:
    """Taken from the metrics page itself and not from the tables that the reference is written from."""
    assert sorted(rows("metrics.md")) == sorted(exported())


def test_what_is_served_is_documented_and_the_other_way_round() -> None:
    """By the interface's own description; only the page's files are left out of it."""
    plane = cast(ControlPlane, SimpleNamespace(status=None))
    paths = create_app(plane, Access(TokenFile(None))).openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, calls in paths.items() for method in calls}
    assert set(rows("rest.md")) == served
    sources = (ROOT / "daemon" / "kvwattd").rglob("*.py")
    hidden = [path.name for path in sources if "include_in_schema" in path.read_text(encoding="utf-8")]
    assert hidden == ["files.py"]


def test_what_is_configured_is_documented_and_the_other_way_round() -> None:
    """Taken from the schema that the configuration is checked against."""
    assert sorted(rows("configuration.md")) == sorted(_keys(Config.model_json_schema()))


def _keys(schema: dict[str, Any], at: dict[str, Any] | None = None, prefix: str = "") -> Iterator[str]:
    """Dotted names of all leaves of a JSON schema; lists and maps of tables count as the table."""
    for name, field in (at or schema).get("properties", {}).items():
        table = _table(schema, field)
        if table is None:
            yield prefix + name
        else:
            yield from _keys(schema, table, f"{prefix}{name}.")


def _table(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any] | None:
    for part in (field, field.get("items", {}), *field.get("anyOf", ()), *field.get("allOf", ())):
        found = schema["$defs"].get(str(part.get("$ref", "")).rpartition("/")[2], {})
        if "properties" in found:
            return dict(found)
    return None


# Ansible's variables begin like metrics.
ANSIBLE = {ROOT / "docs" / "install-ansible.md"}
TEXTS = sorted({*ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/[!a]*/*"), *ROOT.glob("*.md")} - ANSIBLE)
METRIC = re.compile(r"(?<![\w/.:-])kvwatt_[a-z0-9_]+")
CALL = re.compile(r"/api/v1/([\w/.{}-]*[\w}])")
KEY = re.compile(r"`\[*([a-z_]+(?:\.[a-z_0-9]+)+)\]*(?: =[^`]*)?`")
DESCRIPTION = "/api/v1/openapi.json"
FILE = re.compile(r"\.(md|py|toml|db|txt|json)$")


def test_no_text_names_a_metric_a_call_or_a_key_that_is_not_there() -> None:
    """README, the documents and what is deployed."""
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in TEXTS if path.is_file()}
    series, keys = _series(), set(rows("configuration.md"))
    tables = _beginnings(keys)
    told = set(_keys(InstanceView.model_json_schema()))  # of an instance over REST, as in `model.energy`
    told |= _beginnings(told)
    sections = {table for table in tables if "." not in table}
    calls = [_pattern(path) for path in (*(row.partition(" ")[2] for row in rows("rest.md")), DESCRIPTION)]
    wrong: dict[str, list[str]] = {}
    for path, text in texts.items():
        named = {
            key for key in KEY.findall(text) if key.partition(".")[0] in sections and not FILE.search(key)
        }
        asked = {f"/api/v1/{call}" for call in CALL.findall(text)}
        bad = [
            *(name for name in METRIC.findall(text) if not _is_exported(name, series)),
            *(named - keys - tables - told),
            *(call for call in asked if not any(known.fullmatch(call) for known in calls)),
        ]
        if bad:
            wrong[str(path)] = sorted(bad)
    assert wrong == {}
    assert sum(len(METRIC.findall(text)) for text in texts.values()) > 100


def _beginnings(keys: set[str]) -> set[str]:
    """Tables that the keys are in."""
    return {key[: dot.start()] for key in keys for dot in re.finditer(r"\.", key)}


def _is_exported(name: str, series: set[str]) -> bool:
    """Also where a text names several by their beginning, as in kvwatt_slo_*."""
    return (
        name == "kvwatt_sim"
        or name in series
        or (name[-1] == "_" and any(one.startswith(name) for one in series))
    )


def _series() -> set[str]:
    """With the parts of histograms."""
    names = exported()
    histograms = {name for name in names if name.endswith("duration_seconds")}
    return names | {name + end for name in histograms for end in ("_bucket", "_sum", "_count")}


def _pattern(path: str) -> re.Pattern[str]:
    """A path of the reference, its parameters filled with whatever a text puts there."""
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))
