"""Types of configuration values: each refuses what makes no sense, and says what is accepted."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

LONGEST_SOCKET_PATH = 107  # sockaddr_un
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_GPU = re.compile(r"\d{1,3}|(GPU|AMD)-[0-9A-Za-z-]+")


def is_loopback(host: str) -> bool:
    """Whether an address or name can only mean this machine; other names are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


def _no_text(value: object) -> object:
    if isinstance(value, str):
        raise ValueError("Input should be a number, not text")
    return _no_bool(value)


def _socket_path(value: Path) -> Path:
    if not value.is_absolute() or len(os.fsencode(value)) > LONGEST_SOCKET_PATH:
        raise ValueError(f"must be an absolute path of at most {LONGEST_SOCKET_PATH} bytes")
    return value


def _base_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            "Input should be the server's base URL, http://HOST:PORT or https://HOST:PORT without path, "
            "user or password"
        )
    return value.rstrip("/")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            "Input should be 1 to 63 letters, digits or any of '_.-', the first a letter or digit"
        )
    return value


def _gpu(value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and text.startswith("MIG-"):
        raise ValueError("Input should be a whole GPU: MIG slices share one clock and cannot be controlled")
    if not isinstance(text, str) or not _GPU.fullmatch(text):
        raise ValueError('Input should be a GPU UUID ("GPU-...", "AMD-...") or an index as a string ("0")')
    return text


# Last, so that it comes first and the limits before it still stand in the JSON schema.
_NUMBER = BeforeValidator(_no_bool)
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False), _NUMBER]
SecondsOrNever = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False), _NUMBER]
Ratio = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _NUMBER]
Quantile = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), _NUMBER]
Megahertz = Annotated[int, Field(gt=0, le=10_000), _NUMBER]
Port = Annotated[int, Field(ge=0, le=65_535), _NUMBER]
Ordinal = Annotated[int, Field(ge=0, le=1_000_000), _NUMBER]
Count = Annotated[int, Field(ge=1, le=1_000_000), _NUMBER]
GpuName = Annotated[str, BeforeValidator(_gpu)]
InstanceName = Annotated[str, AfterValidator(_name)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
JSON_NUMBER = BeforeValidator(_no_text)  # JSON has numbers; the environment has only text
SocketPath = Annotated[Path, AfterValidator(_socket_path)]
FileMode = Annotated[str, Field(pattern=r"^0[0-7]{3}$")]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NUMBER]
Watts = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False), _NUMBER]
