"""Every configuration key: default and effect from the code, meaning from the annotated example."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kvwattd.config import Config, InstanceConfig
from kvwattd.config_change import IN_PLACE, needs_restart
from kvwattd.config_errors import nested_model
from kvwattd.docs.text import NOTE, table

_KEY = re.compile(r"^(?:# )?(?P<key>[a-z_0-9]+) = ")
_SECTION = re.compile(r"^(?:# )?\[+(?P<name>[a-z_.0-9]+)\]+$")


def page(example: str) -> str:
    meant = meanings(example)
    rows = (
        [f"`{key}`", _default(model, name), _effect(key), meant[key]]
        for key, model, name in _keys(Config, "")
    )
    text = table(["key", "default", "a change takes effect", "meaning"], rows)
    return (
        f"# Configuration keys\n\n{NOTE}\n"
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


def meanings(example: str) -> dict[str, str]:
    """Dotted key -> the comment above it, or above the keys of its group."""
    found: dict[str, str] = {}
    section, comment, fresh = "", [""], True
    for line in example.splitlines():
        heading, key = _SECTION.match(line), _KEY.match(line)
        if heading:
            section = heading["name"]
        elif key:
            found[f"{section}.{key['key']}"] = " ".join(comment).strip()
            fresh = True
        elif line.startswith("# "):
            comment = [line[2:]] if fresh else [*comment, line[2:]]
            fresh = False
        else:
            fresh = True
    return found
