"""Builds the simulated NVML with the system's C compiler, once per version of its sources.

The libraries live in `$XDG_CACHE_HOME/kvwatt/nvml-<hash>/` (default `~/.cache`), never on a default
library path: who wants the simulated GPU points LD_LIBRARY_PATH there with `env_for`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
NVML_NAME = "libnvidia-ml.so.1"
CONTROL_NAME = "libkvwattsim.so"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra")
LINK = ("-Wl,-Bsymbolic", "-Wl,-z,defs", "-lm", "-lpthread")
_SHARED = ("state.c", "law.c", "motion.c")
NVML_SOURCES = (
    *_SHARED,
    "api.c",
    "nvml_system.c",
    "nvml_identity.c",
    "nvml_health.c",
    "nvml_read.c",
    "nvml_set.c",
    "unsupported.c",
)
CONTROL_SOURCES = (*_SHARED, "control.c")


class BuildError(RuntimeError):
    """The C compiler refused the sources; the message carries what it said."""


class CompilerMissing(BuildError):  # noqa: N818 - reads as what is the matter, like FileNotFound
    """There is no C compiler."""


@dataclass(frozen=True, slots=True)
class NvmlLibs:
    """Where the two libraries are."""

    dir: Path
    nvml: Path
    control: Path


def build(cache: Path | None = None) -> NvmlLibs:
    """Gives the libraries, compiling them when this version is not in the cache yet.

    Any number of processes may call it at once: each compiles beside the cache and the first to finish
    moves its folder into place.
    """
    cache = cache or cache_dir()
    target = cache / f"nvml-{source_hash()}"
    libs = NvmlLibs(target, target / NVML_NAME, target / CONTROL_NAME)
    if not target.is_dir():
        _build_into(target)
    return libs


def env_for(libs: NvmlLibs, state_path: Path) -> dict[str, str]:
    """Environment under which a child process sees the simulated GPUs instead of real ones."""
    inherited = os.environ.get("LD_LIBRARY_PATH")
    folders = [str(libs.dir), *([inherited] if inherited else [])]
    return {
        "LD_LIBRARY_PATH": ":".join(folders),
        "KVWATT_SIM_STATE": str(state_path),
        # Simulated GPUs share UUIDs, and are other GPUs all the same.
        "KVWATT_LOCK_DIR": f"{state_path}.locks",
    }


def source_hash() -> str:
    """Names this version of the sources, the flags and the machine."""
    digest = hashlib.sha256()
    for path in sorted(CSRC.iterdir()):
        if path.suffix in {".c", ".h", ".def"}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(" ".join((*FLAGS, *LINK, platform.machine())).encode())
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    # The XDG specification has a relative path ignored.
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "kvwatt"


def compiler() -> list[str]:
    """The compiler's command: $CC when set, else the first of cc, gcc, clang on PATH."""
    chosen = shlex.split(os.environ.get("CC", ""))
    for command in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    tried = chosen[0] if chosen else "cc, gcc, clang"
    raise CompilerMissing(
        f"no C compiler found (looked for {tried}): the simulated GPU is compiled on first use. "
        "Install one (Debian, Ubuntu: apt install gcc libc6-dev; Fedora: dnf install gcc) or set CC."
    )


def _build_into(target: Path) -> None:
    command = compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        compile_library(command, work / NVML_NAME, NVML_SOURCES)
        compile_library(command, work / CONTROL_NAME, CONTROL_SOURCES)
        (work / "libnvidia-ml.so").symlink_to(NVML_NAME)
        work.chmod(0o755)  # mkdtemp gives 0700; other users' processes may load the libraries
        _move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError:
        # Another process was first; its folder has the same content.
        if not target.is_dir():
            raise


def compile_library(
    command: list[str], output: Path, sources: tuple[str, ...], extra: tuple[str, ...] = ()
) -> None:
    """Compiles one shared object whose SONAME is its file name."""
    soname = f"-Wl,-soname,{output.name}"
    paths = [str(CSRC / name) for name in sources]
    done = subprocess.run(
        [*command, *FLAGS, *extra, soname, "-o", str(output), *paths, *LINK],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed on {output.name} (status {done.returncode}):\n{done.stderr}")
