"""Writes `csrc/unsupported.def`: the NVML functions nvidia-ml-py knows that the library does not simulate.

Run `python -m kvwatt_sim.nvml.symbols` after a new nvidia-ml-py; a test tells when it is due.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
UNSUPPORTED = CSRC / "unsupported.def"
_SETTER = re.compile(r"nvmlDevice(Set|Reset|Clear)[A-Z]")


def known() -> set[str]:
    """Names that the installed nvidia-ml-py looks up in the library."""
    found = importlib.util.find_spec("pynvml")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("nvidia-ml-py is not installed: no module named pynvml")
    source = Path(found.origin).read_text(encoding="utf-8")
    return set(re.findall(r"_nvmlGetFunctionPointer\(\s*[\"'](nvml\w+)[\"']", source))


def simulated() -> set[str]:
    """Names that the C sources define, by function or by macro."""
    names: set[str] = set()
    for path in sorted(CSRC.glob("nvml_*.c")):
        source = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"^NVML_API [\w ]+\*?(nvml\w+)\(", source, re.MULTILINE))
        names |= set(
            re.findall(r"^(?:READ|READ_INT|READ_PAIR|NO_PROCESSES)\((nvml\w+)", source, re.MULTILINE)
        )
    return names


def unsupported() -> set[str]:
    """Names of the checked-in list."""
    return set(re.findall(r"\((nvml\w+)\)", UNSUPPORTED.read_text(encoding="utf-8")))


def render(names: set[str]) -> str:
    """Text of the list, one macro call per line."""
    calls = [f"UNSUPPORTED{'_SETTER' * bool(_SETTER.match(name))}({name})" for name in sorted(names)]
    return "\n".join(["/* Written by kvwatt_sim.nvml.symbols. */", *calls]) + "\n"


def main() -> None:
    """Adds what is new; names that an older nvidia-ml-py looked up are kept."""
    kept = unsupported() if UNSUPPORTED.exists() else set()
    UNSUPPORTED.write_text(render((known() | kept) - simulated()), encoding="utf-8")


if __name__ == "__main__":
    main()
