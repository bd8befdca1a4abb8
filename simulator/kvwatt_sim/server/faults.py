"""Misbehaviour of the `/metrics` page on request: what a daemon must survive."""

from __future__ import annotations

import random
import re
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Mode(StrEnum):
    """How `/metrics` answers."""

    OK = "ok"
    SLOW = "slow"  # the right page after delay_s
    TRUNCATED = "truncated"  # cut after `fraction` of its bytes, in the middle of a line
    GARBAGE = "garbage"  # size_bytes of random bytes
    EMPTY = "empty"  # 200 with no body
    RENAMED = "renamed"  # `renames`: series under another name
    MISSING = "missing"  # the series in `names` left out
    NAN = "nan"  # the series in `names`, or every vllm: one, with the value NaN
    SET = "set"  # the series in `values` with these values
    STALE = "stale"  # the page as it was when the mode was set
    HUGE = "huge"  # followed by size_bytes of comments
    ERROR = "500"  # HTTP 500
    TWO_ENGINES = "two_engines"  # every vllm: series twice, the second with engine="1"
    MISSING_LABELS = "missing_labels"  # vllm: series without `engine` and `model_name`


class MetricsFault(BaseModel):
    """Body of `POST /_sim/metrics`. `reset_counters` starts every series again at zero, once."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode = Mode.OK
    delay_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    size_bytes: Annotated[int, Field(ge=0, le=1 << 30)] = 1 << 20
    renames: dict[str, str] = {"vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc"}
    names: list[str] = []
    values: dict[str, float] = {}
    reset_counters: bool = False


_NAME = re.compile(r"(?:# (?:HELP|TYPE) )?([A-Za-z_:][A-Za-z0-9_:]*)")
_ENGINE_LABELS = re.compile(r'(?:engine|model_name)="[^"]*",?')
_SUFFIX = re.compile(r"_(?:total|created|bucket|count|sum)$")


def distort(page: bytes, fault: MetricsFault, frozen: bytes) -> bytes:
    """The body that `/metrics` sends in place of `page`; `frozen` is the page when the mode was set."""
    match fault.mode:
        case Mode.TRUNCATED:
            return page[: int(len(page) * fault.fraction)]
        case Mode.GARBAGE:
            return random.Random(0).randbytes(fault.size_bytes)
        case Mode.EMPTY:
            return b""
        case Mode.STALE:
            return frozen
        case Mode.HUGE:
            line = b"# " + b"x" * 1021 + b"\n"
            return page + line * -(-fault.size_bytes // len(line))
        case Mode.OK | Mode.SLOW | Mode.ERROR:
            return page
        case _:
            return _rewrite(page, fault)


def _rewrite(page: bytes, fault: MetricsFault) -> bytes:
    lines = page.decode().splitlines(keepends=True)
    return "".join(_line(line, fault) for line in lines).encode()


def _line(line: str, fault: MetricsFault) -> str:
    """What replaces one line of the page: nothing, another line, or two."""
    match = _NAME.match(line)
    if match is None:
        return line
    name = match[1]
    family = _SUFFIX.sub("", name)
    is_sample = not line.startswith("#")
    match fault.mode:
        case Mode.RENAMED:
            old = name if name in fault.renames else family
            new = fault.renames.get(old)
            return line if new is None else line.replace(old, new, 1)
        case Mode.MISSING:
            return "" if {name, family} & set(fault.names) else line
        case Mode.NAN if is_sample and (name.startswith("vllm:") if not fault.names else _named(name, fault)):
            return _with_value(line, "NaN")
        case Mode.SET if is_sample and name in fault.values:
            return _with_value(line, repr(fault.values[name]))
        case Mode.TWO_ENGINES if is_sample and 'engine="0"' in line:
            return line + line.replace('engine="0"', 'engine="1"', 1)
        case Mode.MISSING_LABELS if is_sample and name.startswith("vllm:"):
            return _ENGINE_LABELS.sub("", line).replace(",}", "}").replace("{}", "")
    return line


def _named(name: str, fault: MetricsFault) -> bool:
    return name in fault.names or _SUFFIX.sub("", name) in fault.names


def _with_value(line: str, value: str) -> str:
    return line.rsplit(" ", 1)[0] + f" {value}\n"
