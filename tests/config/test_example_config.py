"""The annotated example and the schema say the same."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kvwattd.config import Config, load_config, parse_config
from kvwattd.config_errors import nested_model

EXAMPLE = Path(__file__).parents[2] / "deploy" / "kvwatt.example.toml"
_COMMENTED = re.compile(r"^# (?=\[+[a-z_.0-9]+\]+$|[a-z_0-9]+ = )", re.MULTILINE)


def schema_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        if nested:
            yield from schema_keys(nested, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def document_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(inner, dict):
            yield from document_keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def uncommented() -> dict[str, Any]:
    return tomllib.loads(_COMMENTED.sub("", EXAMPLE.read_text(encoding="utf-8")))


def test_example_loads_as_it_stands() -> None:
    """The example is a valid configuration."""
    assert load_config(EXAMPLE).instances[0].name == "chat"


def test_example_loads_with_every_option_uncommented() -> None:
    """Every commented key is valid too."""
    config = parse_config(uncommented())
    assert config.api.token_file == Path("/etc/kvwatt/tokens.toml")
    assert config.instances[0].slo.tbt is not None


def test_example_and_schema_have_the_same_keys() -> None:
    """Every key of the schema appears in the example, and every key of the example in the schema."""
    in_schema = set(schema_keys(Config))
    assert len(in_schema) > 30
    assert set(document_keys(uncommented())) == in_schema


@pytest.mark.parametrize("section", ["daemon", "api", "guard", "model", "policy"])
def test_example_shows_the_defaults(section: str) -> None:
    """A key that is set in the example has its default value, so that deleting it changes nothing."""
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))[section]
    model = nested_model(Config.model_fields[section].annotation)
    assert model is not None
    for key, value in shown.items():
        default = model.model_fields[key].default
        assert default is not PydanticUndefined
        assert str(default) == str(value) or default == value, key


def test_every_key_is_preceded_by_a_comment() -> None:
    """No key, or group of keys, stands without an explanation above it."""
    blocks = re.split(r"\n(?=#|\n|\[)", EXAMPLE.read_text(encoding="utf-8"))
    bare = [b for b in blocks if re.match(r"[a-z_]+ = ", b.lstrip("\n"))]
    assert bare == []
