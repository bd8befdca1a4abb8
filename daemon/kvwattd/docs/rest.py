"""Every REST call, from the same description that the daemon serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.ports import ControlPlane
from kvwattd.api.tokens import TokenFile
from kvwattd.docs.text import NOTE, table


def page() -> str:
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
    text = table(["call", "token", "body", "meaning"], rows)
    return (
        f"# REST calls\n\n{NOTE}\n"
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
