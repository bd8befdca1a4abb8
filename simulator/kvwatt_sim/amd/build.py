"""Builds the simulated libamd_smi.so, once per version of its sources, beside the simulated NVML's cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from kvwatt_sim.nvml.build import CSRC as STATE_CSRC
from kvwatt_sim.nvml.build import cache_dir, compile_library, compiler, source_hash

CSRC = Path(__file__).parent / "csrc"
LIBRARY = "libamd_smi.so"
SOURCES = ("state.c", "law.c", "motion.c", "api.c", str(CSRC / "amdsmi.c"))


def build(cache: Path | None = None) -> Path:
    """The library, compiled when this version is not in the cache yet. Raises BuildError."""
    digest = hashlib.sha256(source_hash().encode() + (CSRC / "amdsmi.c").read_bytes()).hexdigest()[:16]
    folder = (cache or cache_dir()) / f"amdsmi-{digest}"
    library = folder / LIBRARY
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / LIBRARY
            compile_library(compiler(), made, SOURCES, ("-I", str(STATE_CSRC)))
            made.chmod(0o755)  # other users' processes may load it
            made.replace(library)
    return library


def env_for(library: Path, state_path: Path) -> dict[str, str]:
    """Environment under which a child process sees the simulated GPUs as AMD's."""
    inherited = os.environ.get("LD_LIBRARY_PATH")
    folders = [str(library.parent), *([inherited] if inherited else [])]
    return {
        "LD_LIBRARY_PATH": ":".join(folders),
        "KVWATT_SIM_STATE": str(state_path),
        "KVWATT_LOCK_DIR": f"{state_path}.locks",
    }


def amd_uuid(uuid: str) -> str:
    """How kvwatt names the AMD GPU with this simulated GPU's UUID."""
    return "AMD-" + uuid.removeprefix("GPU-")
