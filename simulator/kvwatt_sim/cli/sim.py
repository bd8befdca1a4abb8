"""`kvwatt sim gpu`: makes, shows, sets and breaks simulated GPUs in a state file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from kvwatt_sim.nvml.control import SimGpus
    from kvwatt_sim.nvml.said import Reading

app = typer.Typer(help="Tools of the simulated plant.", no_args_is_help=True)
gpu_app = typer.Typer(help="Simulated GPUs behind a simulated libnvidia-ml.so.1.", no_args_is_help=True)
app.add_typer(gpu_app, name="gpu")

State = Annotated[
    Path, typer.Option("--state", envvar="KVWATT_SIM_STATE", help="State file shared by all processes.")
]
Gpu = Annotated[int, typer.Option("--gpu", help="Index of the GPU.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _tools() -> None:
    """Tools of the simulated plant."""


@gpu_app.command()
def create(
    state: State,
    card: Annotated[str, typer.Option(help="Hardware card.")] = "l20",
    count: Annotated[int, typer.Option(min=1, max=8, help="Number of GPUs.")] = 1,
    permission: Annotated[str, typer.Option(help="Who may set clocks: root, deny or allow.")] = "allow",
) -> None:
    """Make idle GPUs of one card and print the environment that shows them to other programs."""
    from kvwatt_sim import cards
    from kvwatt_sim.nvml.build import build, env_for
    from kvwatt_sim.nvml.control import SimGpus
    from kvwatt_sim.nvml.spec import demo_uuid

    with _errors():
        spec = cards.load(card).gpu_spec
        libs = build()
        gpus = [spec(demo_uuid(i)) for i in range(count)]
        SimGpus.create(state, gpus, permission=_permission(permission), libs=libs).close()
        for name, value in env_for(libs, state.resolve()).items():
            typer.echo(f"export {name}={value}")


@gpu_app.command()
def show(state: State, as_json: AsJson = False) -> None:
    """Show every GPU as it is now."""
    with _opened(state) as gpus:
        rows = [_row(gpus, index) for index in range(gpus.count)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"GPU {row['index']}  {row['name']}  {row['uuid']}")
        for key, value in row.items():
            if key not in {"index", "name", "uuid"}:
                typer.echo(f"  {key:<16} {value}")


@gpu_app.command("set")
def set_(
    state: State,
    gpu: Gpu = 0,
    activity: Annotated[
        str | None, typer.Option(help="COMPUTE,MEMORY: shares of time, 0 to 1 each; 0,0 is idle.")
    ] = None,
    lock: Annotated[
        str | None, typer.Option(help="MIN,MAX in MHz, as another clock writer would; none unlocks.")
    ] = None,
    cap_w: Annotated[float | None, typer.Option(help="Power cap.")] = None,
    temperature_c: Annotated[str | None, typer.Option(help="Held temperature; none lets it go.")] = None,
    permission: Annotated[str | None, typer.Option(help="Who may set clocks: root, deny or allow.")] = None,
    reload_driver: Annotated[bool, typer.Option(help="Lose lock, cap and energy counter.")] = False,
) -> None:
    """Set what is given and leave the rest."""
    with _opened(state) as gpus:
        if permission is not None:
            gpus.set_permission(_permission(permission))
        if reload_driver:
            gpus.reload_driver(gpu)
        if activity is not None:
            compute, memory = _pair(activity, "--activity")
            gpus.publish(gpu, compute, memory)
        if lock is not None:
            low, high = (0.0, 0.0) if lock == "none" else _pair(lock, "--lock")
            gpus.request_lock(gpu, (int(low), int(high)) if high else None)
        if cap_w is not None:
            gpus.set_power_cap_w(gpu, cap_w)
        if temperature_c is not None:
            gpus.set_temperature(gpu, None if temperature_c == "none" else float(temperature_c))


@gpu_app.command()
def inject(
    state: State,
    call: Annotated[str, typer.Option(help="NVML function, a prefix with *, or * for every call.")] = "*",
    gpu: Gpu = 0,
    error: Annotated[str | None, typer.Option(help="NVML error, as in GPU_IS_LOST.")] = None,
    hang_s: Annotated[float, typer.Option(help="Seconds the call hangs; inf: until cleared.")] = 0.0,
    slow_s: Annotated[float, typer.Option(help="Seconds the call takes longer.")] = 0.0,
    obedience: Annotated[str, typer.Option(help="Setters: obey, ignore (but say yes) or wrong.")] = "obey",
    count: Annotated[int | None, typer.Option(help="Number of calls; unlimited by default.")] = None,
) -> None:
    """Make an NVML call fail, hang, crawl or lie."""
    from kvwatt_sim.nvml.said import Fault

    with _opened(state) as gpus:
        settings: dict[str, Any] = {"error": error, "obedience": obedience, "count": count}
        gpus.inject(gpu, Fault(call, hang_s=hang_s, slow_s=slow_s, **settings))


@gpu_app.command()
def clear(state: State, gpu: Annotated[int | None, typer.Option(help="Default: all.")] = None) -> None:
    """Take faults away; every hanging call goes on."""
    with _opened(state) as gpus:
        for index in range(gpus.count) if gpu is None else [gpu]:
            gpus.clear_faults(index)


@gpu_app.command()
def log(state: State, as_json: AsJson = False) -> None:
    """List the setters that were called, by whom, and what they answered."""
    with _opened(state) as gpus:
        calls, now_s = gpus.setter_log(), gpus.now_s()
    for c in calls:
        if as_json:
            typer.echo(json.dumps({name: getattr(c, name) for name in c.__slots__}))
        else:
            typer.echo(
                f"{now_s - c.t_s:9.3f} s ago  {c.comm}[{c.pid}]  GPU {c.gpu}  {c.call}({c.args})  {c.result}"
            )


def _row(gpus: SimGpus, index: int) -> dict[str, Any]:
    spec, now = gpus.spec(index), gpus.read(index)
    return {
        "index": index,
        "name": spec.name,
        "uuid": spec.uuid,
        "clock_mhz": now.clock_mhz,
        "load_clock_mhz": now.load_clock_mhz,
        "lock_mhz": now.lock_mhz,
        "power_w": round(now.power_w, 3),
        "cap_w": now.cap_w,
        "energy_j": round(now.energy_j, 3),
        "temperature_c": round(now.temperature_c, 1),
        "activity": [now.compute, now.memory],
        "reasons": _reasons(now),
        "faults": now.faults,
        "permission": now.permission,
    }


def _reasons(now: Reading) -> list[str]:
    names = {0x1: "idle", 0x4: "power cap", 0x8: "hw slowdown", 0x20: "sw thermal", 0x40: "hw thermal"}
    return [name for bit, name in names.items() if now.reasons & bit]


def _permission(text: str) -> Any:  # noqa: ANN401 - checked by the control side, which names what it accepts
    return text


def _pair(text: str, option: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: two numbers as in 210,1200 are needed", param_hint=option
        ) from None
    return first, second


@contextmanager
def _opened(state: Path) -> Iterator[SimGpus]:
    from kvwatt_sim.nvml.control import SimGpus

    with _errors(), SimGpus.open(state) as gpus:
        yield gpus


@contextmanager
def _errors() -> Iterator[None]:
    from kvwatt_sim.nvml.build import BuildError

    try:
        yield
    except (ValueError, OSError, BuildError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"kvwatt sim: {error}", err=True)
    raise typer.Exit(1) from error
