"""The Ansible role: what its templates make is accepted by guard and daemon; what it names exists.

That it runs, and changes nothing the second time, was seen with Ansible itself (docs/install-ansible.md).
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvwattd.config import parse_config
from kvwattd.guard.config import build

jinja2 = pytest.importorskip("jinja2")
yaml = pytest.importorskip("yaml")

ANSIBLE = Path(__file__).parents[2] / "deploy" / "ansible"
ROLE = ANSIBLE / "roles" / "kvwatt"


def combine(under: dict[str, Any], over: dict[str, Any], recursive: bool = False) -> dict[str, Any]:
    """Ansible's filter."""
    made = {**under, **over}
    for key in under.keys() & over.keys() if recursive else ():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            made[key] = combine(under[key], over[key], True)
    return made


def rendered(name: str, **variables: object) -> dict[str, Any]:
    """With the role's defaults, those of `vars` and these variables."""
    found = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=True)
    found.filters |= {
        "combine": combine,
        "to_json": lambda value: jinja2.utils.markupsafe.Markup(json.dumps(value)),
    }
    values = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text()) | variables
    text = (ROLE / "templates" / name).read_text()
    return tomllib.loads(found.from_string(text).render(**values, ansible_managed="by a test"))


def test_the_example_is_accepted() -> None:
    """The inventory that is shipped makes configurations that both programs take, shadow mode first."""
    hosts = yaml.safe_load((ANSIBLE / "inventory.example.yml").read_text())["kvwatt"]["hosts"]
    (variables,) = hosts.values()
    guard = rendered("guard.toml.j2", **variables)
    assert guard.pop("users") == ["kvwatt"]  # no such user here
    daemon = parse_config(rendered("kvwatt.toml.j2", **variables))
    assert set(daemon.instances[0].gpus) <= set(build(guard).gpus)
    assert daemon.daemon.mode == "shadow" and build(guard).socket == daemon.guard.socket


def test_sections_and_instances_of_ones_own() -> None:
    """Keys of a section join the defaults; tables inside of instances are theirs."""
    instances = [
        {"name": "chat", "url": "http://127.0.0.1:8000", "gpus": ["0"], "slo": {"tbt": {"limit_s": 0.05}}},
        {"name": "code", "url": "http://127.0.0.1:8001", "gpus": ["1"]},
    ]
    sections = {
        "daemon": {"log_format": "json"},
        "slo": {"tbt": {"quantile": 0.9}},
        "policy": {"margin": 0.1},
    }
    made = parse_config(rendered("kvwatt.toml.j2", kvwatt_config=sections, kvwatt_instances=instances))
    assert made.daemon.log_format == "json" and made.daemon.mode == "shadow" and made.policy.margin == 0.1
    tbt = [made.slo_for(name).tbt for name in ("chat", "code")]
    assert [(one.limit_s, one.quantile) for one in tbt if one] == [(0.05, 0.99), (0.1, 0.9)]


def test_what_tasks_name() -> None:
    """Each notified handler, imported file, template and unit exists."""
    tasks = [task for path in (ROLE / "tasks").glob("*.yml") for task in yaml.safe_load(path.read_text())]
    handlers = {handler["name"] for handler in yaml.safe_load((ROLE / "handlers" / "main.yml").read_text())}
    assert {name for task in tasks for name in task.get("notify", [])} <= handlers
    units = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["kvwatt_units"]
    folder = Path(units.replace("{{ role_path }}", str(ROLE))).resolve()
    for task in tasks:
        if "ansible.builtin.template" in task:
            assert (ROLE / "templates" / task["ansible.builtin.template"]["src"]).is_file()
        for item in task.get("loop", ["kvwatt"]) if "ansible.builtin.copy" in task else ():
            source = task["ansible.builtin.copy"]["src"].replace("{{ kvwatt_units }}", str(folder))
            assert "kvwatt_wheel" in source or Path(source.replace("{{ item }}", str(item))).is_file()
