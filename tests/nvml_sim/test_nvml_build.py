"""Building the simulated NVML on demand."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvwatt_sim.nvml import symbols
from kvwatt_sim.nvml.build import (
    CONTROL_NAME,
    CONTROL_SOURCES,
    NVML_NAME,
    NVML_SOURCES,
    BuildError,
    CompilerMissing,
    NvmlLibs,
    build,
    compile_library,
    compiler,
    env_for,
)
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import GpuSpec, PowerLaw


def test_concurrent_builds_give_one_folder(tmp_path: Path) -> None:
    """Builders that race end with the same libraries and leave nothing half made behind."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(build, [tmp_path, tmp_path])
    assert first == second == build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [first.dir.name]
    names = {path.name for path in first.dir.iterdir()}
    assert names == {NVML_NAME, CONTROL_NAME, "libnvidia-ml.so"}


def test_no_compiler_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler the error says what was looked for and how to get one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(CompilerMissing, match=r"no C compiler found.*apt install gcc"):
        build(tmp_path / "cache")
    monkeypatch.setenv("CC", "no-such-cc -O0")
    with pytest.raises(CompilerMissing, match="no-such-cc"):
        build(tmp_path / "cache")


def test_a_cached_build_needs_no_compiler(
    libs: NvmlLibs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once built, the libraries are found without a compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build() == libs


def test_a_failing_compiler_is_quoted(tmp_path: Path) -> None:
    """What the compiler says is in the error."""
    with pytest.raises(BuildError, match="no-such-source"):
        compile_library(compiler(), tmp_path / "x.so", ("no-such-source.c",))


def test_the_sources_have_no_warnings(tmp_path: Path) -> None:
    """With all warnings made errors both libraries still compile."""
    strict = ("-Werror", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion")
    for name, sources in ((NVML_NAME, NVML_SOURCES), (CONTROL_NAME, CONTROL_SOURCES)):
        compile_library(compiler(), tmp_path / name, sources, strict)
        assert (tmp_path / name).is_file()


def test_exported_symbols_are_only_the_two_interfaces(libs: NvmlLibs) -> None:
    """Inside a serving engine the control library brings no NVML names, and NVML no others."""
    assert exported(libs.control)
    assert all(name.startswith("kvws_") for name in exported(libs.control))
    assert exported(libs.nvml) == symbols.simulated() | symbols.unsupported()


def exported(library: Path) -> set[str]:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    return {line.split()[-1] for line in done.stdout.splitlines()}


def test_sonames(libs: NvmlLibs) -> None:
    """The loader knows the libraries by the names that callers ask for."""
    for library in (libs.nvml, libs.control):
        done = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True)
        assert f"Library soname: [{library.name}]" in done.stdout


def test_the_environment_keeps_what_was_there(libs: NvmlLibs, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inherited library path stays, behind the simulated library."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    found = env_for(libs, Path("/run/gpus"))
    assert found == {
        "LD_LIBRARY_PATH": f"{libs.dir}:/opt/lib",
        "KVWATT_SIM_STATE": "/run/gpus",
        "KVWATT_LOCK_DIR": "/run/gpus.locks",
    }


def test_a_specification_survives_the_library(gpus: SimGpus) -> None:
    """What a GPU was created with is what it says it is, whoever opens it."""
    spec = gpus.spec(1)
    with SimGpus.open(gpus.path) as other:
        assert other.spec(1) == spec
    assert spec.supported_mhz == tuple(range(210, 2521, 15))
    assert spec.power_law.f_ref_mhz == 2520


def test_only_state_files_are_opened(tmp_path: Path) -> None:
    """A missing or foreign file is refused with its name."""
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\0" * 100)
    with pytest.raises(OSError, match=r"not a state file.*foreign"):
        SimGpus.open(foreign)
    with pytest.raises(FileNotFoundError, match="absent"):
        SimGpus.open(tmp_path / "absent")


def test_number_and_names_of_gpus(gpus: SimGpus, tmp_path: Path) -> None:
    """One to eight GPUs can be made, each with its own UUID."""
    spec = gpus.spec(0)
    eight = [replace(spec, uuid=f"GPU-{index}") for index in range(8)]
    with SimGpus.create(tmp_path / "eight", eight) as made:
        assert made.count == 8
    for wrong in ([], [*eight, spec], [spec, spec]):
        with pytest.raises(ValueError, match=r"GPUs: 1 to 8|needs its own"):
            SimGpus.create(tmp_path / "wrong", wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boost_mhz": 2521}, "boost_mhz = 2521"),
        ({"supported_mhz": ()}, "supported_mhz has 0 clocks"),
        ({"arch": "kepler"}, "arch = 'kepler'"),
        ({"name": ""}, "name = ''"),
        ({"min_cap_w": 300.0}, "caps 300"),
        ({"power_cap_w": 50.0}, "power_cap_w = 50"),
        ({"switch_latency_s": -1.0}, "switch_latency_s = -1"),
    ],
)
def test_bad_specifications_are_refused_by_name(
    gpus: SimGpus, change: dict[str, object], message: str
) -> None:
    """A specification names the key, the value and what is accepted."""
    settings = {name: getattr(gpus.spec(0), name) for name in GpuSpec.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        GpuSpec(**{**settings, **change})
    with pytest.raises(ValueError, match="idle_w = -1"):
        PowerLaw(f_ref_mhz=2520, idle_w=-1)


def test_control_needs_only_the_standard_library(gpus: SimGpus) -> None:
    """The control side works without any installed package, as inside a serving engine's environment."""
    root = Path(symbols.__file__).parents[2]
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(root)!r})
        from pathlib import Path
        from kvwatt_sim.nvml.control import SimGpus
        print(SimGpus.open(Path({str(gpus.path)!r})).clock_mhz(0))
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("210", "")
