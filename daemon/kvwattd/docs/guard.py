"""The guard: its configuration, flags, operations, answers and error codes."""

from __future__ import annotations

import argparse

from kvwattd.docs import fields
from kvwattd.docs.configuration import meanings
from kvwattd.docs.text import NOTE, table
from kvwattd.guard import protocol
from kvwattd.guard.config import build, known_keys, parser
from kvwattd.guard.obedience import EXTERNAL, LIMITS

# Of a request, beside `id` and `op`; a test compares them with what the server answers.
OPERATIONS = {
    "hello": ("`v`, `role`", "must come first; `control` takes the lease"),
    "set": ("`gpus`, `floor_mhz`, `target_mhz`", "locks all of them to the range, or none; renews the lease"),
    "reset": ("`gpus`", "driver default on those that this guard set; renews the lease"),
    "renew": ("–", "renews the lease"),
    "status": ("–", "what is set, by whom, what is wrong; answered to every role"),
    "resume": ("`gpus`", "ends their alarms: they may be set again; only for the guard's own user or root"),
}


def page(example: str) -> str:
    """`example`: the annotated guard.toml."""
    return (
        f"# Guard\n\n{NOTE}\n"
        "What it does and why is in [guard-protocol.md](../guard-protocol.md).\n\n"
        f"## Configuration\n\n{_keys(example)}\n\n"
        f"## Flags of `kvwatt-guard`\n\nThey override the file.\n\n{_flags()}\n\n"
        f"## Messages\n\nProtocol version {protocol.VERSION}; clients from version {protocol.OLDEST_CLIENT} "
        f"on are served. One JSON object a line, at most {protocol.MAX_MESSAGE_BYTES:,} bytes; at most "
        f"{protocol.MAX_GPUS} GPUs.\n\n{_operations()}\n\n"
        f"### Answer to `hello`\n\n{_fields(protocol.GuardHello)}\n\n"
        f"### Answer to `status`\n\n{_fields(protocol.GuardStatus)}\n\n"
        f"### One of its `gpus`\n\n{_fields(protocol.GuardGpu)}\n\n"
        f"`limited_by`: {', '.join(f'`{word}`' for word in (*LIMITS.values(), EXTERNAL))}.\n\n"
        f"### States\n\n{_words(protocol.ClockState)}\n\n### Error codes\n\n{_words(protocol.Code)}\n"
    )


def _keys(example: str) -> str:
    meant = {key.removeprefix("."): said for key, said in meanings(example).items()}
    defaults = build({"gpus": ["GPU-0"]})
    rows = []
    for key in known_keys():
        value = "required" if key == "gpus" else _default(key, getattr(defaults, key, None))
        rows.append([f"`{key}`", value, meant[key]])
    return table(["key", "default", "meaning"], rows)


def _default(key: str, value: object) -> str:
    if key in ("users", "groups"):
        return "none"
    if key == "socket_mode":
        return f"`{value:04o}`"
    return "what the GPU supports" if key in ("min_mhz", "max_mhz") else f"`{value}`"


def _flags() -> str:
    rows = [
        [", ".join(f"`{word}`" for word in action.option_strings), action.help or "–"]
        for action in parser()._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    return table(["flag", "meaning"], rows)


def _operations() -> str:
    rows = [[f"`{name}`", *told] for name, told in OPERATIONS.items()]
    return table(["operation", "fields", "does"], rows)


def _fields(kind: type) -> str:
    return table(["field", "type", "meaning"], fields.rows(kind))


def _words(kind: type) -> str:
    rows = [[f"`{one.value.strip(chr(34))}`", one.said or "–"] for one in fields.fields_of(kind)]
    return table(["word", "meaning"], rows)
