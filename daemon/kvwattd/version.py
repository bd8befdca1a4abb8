"""The version of the installed distribution."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def kvwatt_version() -> str:
    """As in pyproject.toml; "unknown" when run from a folder that was never installed."""
    try:
        return version("kvwatt")
    except PackageNotFoundError:
        return "unknown"
