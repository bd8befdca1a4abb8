"""Checks of the machine: GPUs, driver, privilege, guard, other clock writers, ports, time. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kvwattd.config import Mode
from kvwattd.config_values import is_loopback
from kvwattd.doctor.facts import Facts, Finding, GpuFact, Level, PortFact
from kvwattd.guard.protocol import ClockState

POWER_OR_HEAT = 0x4 | 0x8 | 0x20 | 0x40 | 0x80  # clocks event reasons (nvml.h)
BUSY_UTILIZATION = 0.5
LIMITED_BELOW = 0.9  # of the default clock; less than boost jitter explains
SLOW_CLOCKSOURCES = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies"})
COARSE_S = 1e-3

# Programs that write GPU clocks or power limits, by process name, with what to do about them.
WRITERS = {
    "zeusd": (Level.WARNING, "stop it (systemctl disable --now zeusd) or keep it off these GPUs"),
    "lactd": (Level.WARNING, "stop it: systemctl disable --now lactd"),
    "lact": (Level.WARNING, "stop its daemon: systemctl disable --now lactd"),
    "nvidia-powerd": (Level.WARNING, "stop it: systemctl disable --now nvidia-powerd"),
    "nv-hostengine": (Level.NOTE, "reading is fine; make sure that no `dcgmi config --set` sets clocks"),
}


def check_config(facts: Facts) -> Iterator[Finding]:
    for error in facts.config_errors:
        advice = "correct the key; deploy/kvwatt.example.toml documents all"
        yield Finding("configuration", Level.PROBLEM, error, advice)
    if facts.config is not None:
        config = facts.config
        found = f"valid: mode {config.daemon.mode}, {len(config.instances)} instance(s)"
        yield Finding("configuration", Level.OK, found)
    elif not facts.config_errors:
        found = "none given: servers, model, guard and ports are not checked"
        yield Finding("configuration", Level.NOTE, found, "kvwatt doctor --config FILE")
    if facts.state_dir_error:
        advice = "create it for the daemon's user, or set daemon.state_dir"
        yield Finding("state folder", Level.WARNING, facts.state_dir_error, advice)


def check_driver(facts: Facts) -> Iterator[Finding]:
    if facts.driver_error:
        advice = (
            "install the NVIDIA driver, or give the container the GPUs (--gpus all); `nvidia-smi` must work. "
            "Without a GPU, try `kvwatt demo`"
        )
        yield Finding("driver", Level.PROBLEM, facts.driver_error, advice)
        return
    versions = sorted({gpu.info.driver_version for gpu in facts.gpus if gpu.info is not None})
    if versions:
        yield Finding("driver", Level.OK, f"version {', '.join(versions)}")


def check_gpus(facts: Facts) -> Iterator[Finding]:
    if not facts.gpus and not facts.driver_error:
        yield Finding("GPUs", Level.PROBLEM, "the driver lists no GPU", "`nvidia-smi -L` must list one")
    for gpu in facts.gpus:
        yield from _check_gpu(gpu)
    yield from _check_owners(facts)


def _check_gpu(gpu: GpuFact) -> Iterator[Finding]:
    check, info = f"GPU {gpu.selector}", gpu.info
    if info is None:
        yield Finding(
            check, Level.PROBLEM, gpu.error, "name a GPU that `nvidia-smi -L` lists in instance.gpus"
        )
        return
    clocks = info.supported_mhz
    found = f"{info.name}, {info.uuid}, {len(clocks)} clocks from {clocks[0]} to {clocks[-1]} MHz"
    yield Finding(check, Level.OK, found)
    if info.uuid.startswith("AMD-"):
        told = "setting the clocks of AMD GPUs was never tried on hardware"
        yield Finding(check, Level.NOTE, told, "docs/hardware.md")
    if gpu.error:
        yield Finding(check, Level.PROBLEM, gpu.error, "see `dmesg` for Xid errors; the GPU may need a reset")
    if info.mig:
        advice = "switch it off (nvidia-smi -i ID -mig 0) or leave this GPU out: its slices share one clock"
        yield Finding(check, Level.PROBLEM, "MIG is on", advice)
    if not info.persistence:
        advice = (
            "run nvidia-persistenced or nvidia-smi -pm 1: else the driver forgets clocks and energy when idle"
        )
        yield Finding(check, Level.WARNING, "persistence mode is off", advice)


def _check_owners(facts: Facts) -> Iterator[Finding]:
    """An index and a UUID may name the same GPU: only the driver can tell."""
    selectors: dict[str, list[str]] = {}
    for gpu in facts.gpus:
        if gpu.info is not None:
            selectors.setdefault(gpu.info.uuid, []).append(gpu.selector)
    for uuid, names in selectors.items():
        if len(names) > 1:
            found = f"{' and '.join(names)} are the same GPU, {uuid}"
            yield Finding("GPUs", Level.PROBLEM, found, "give each GPU to one instance only")


def check_privilege(facts: Facts) -> Iterator[Finding]:
    """Decided by who we are and whom we can reach, never by setting a clock."""
    may, guard, config = facts.privilege.may_set_clocks, facts.guard, facts.config
    capable = "with" if facts.privilege.cap_sys_admin else "without"
    who = f"user id {facts.privilege.euid}, {capable} CAP_SYS_ADMIN"
    if guard is not None and guard.hello is not None:
        yield Finding("permission", Level.OK, f"the guard at {guard.socket} sets clocks for us")
    elif config is not None and config.guard.spawn and not may:
        advice = "start `kvwatt run` as root, or set guard.spawn = false and run kvwatt-guard.service"
        yield Finding("permission", Level.PROBLEM, f"guard.spawn needs root: {who}", advice)
    elif may:
        yield Finding("permission", Level.OK, f"a guard started here may set clocks: {who}")
    else:
        advice = "run the guard as root (kvwatt-guard.service); nothing else needs it"
        yield Finding("permission", Level.NOTE, f"clocks cannot be set from here: {who}", advice)


def check_guard(facts: Facts) -> Iterator[Finding]:
    guard, config = facts.guard, facts.config
    if guard is None or config is None:
        return
    if guard.hello is None:
        yield _guard_absent(guard.error, config.guard.spawn, config.daemon.mode)
        return
    hello = guard.hello
    found = f"version {hello.version}, lease {hello.lease_s:g} s, {hello.min_mhz} to {hello.max_mhz} MHz"
    yield Finding("guard", Level.OK, f"{found}, {len(hello.gpus)} GPU(s)")
    barred = [g.info.uuid for g in facts.gpus if g.info is not None and g.info.uuid not in hello.gpus]
    if barred:
        advice = "restart it with " + " ".join(f"--gpu {uuid}" for uuid in barred) + " as well"
        yield Finding("guard", Level.PROBLEM, f"does not permit {', '.join(barred)}", advice)
    if hello.lease_s <= config.daemon.tick_s:
        advice = f"start the guard with --lease-s above daemon.tick_s ({config.daemon.tick_s:g} s)"
        yield Finding("guard", Level.PROBLEM, f"its lease of {hello.lease_s:g} s ends between ticks", advice)
    for gpu in guard.status.gpus if guard.status is not None else ():
        if gpu.fault:
            yield Finding("guard", Level.PROBLEM, f"{gpu.uuid}: {gpu.fault}", "see the guard's log")


def _guard_absent(error: str, spawn: bool, mode: Mode) -> Finding:
    if spawn:
        return Finding("guard", Level.OK, "`kvwatt run` will start it (guard.spawn)")
    advice = "start it: systemctl start kvwatt-guard, or set guard.socket; the daemon's user needs its group"
    return Finding("guard", Level.PROBLEM if mode is Mode.ACTIVE else Level.WARNING, error, advice)


def check_writers(facts: Facts) -> Iterator[Finding]:
    found = [p for p in facts.processes if p.name in WRITERS]
    for process in found:
        level, advice = WRITERS[process.name]
        yield Finding("other clock writers", level, f"{process.name} runs (process {process.pid})", advice)
    limited = list(_limited(facts))
    yield from limited
    if not found and not limited:
        yield Finding("other clock writers", Level.OK, "none seen")


def _limited(facts: Facts) -> Iterator[Finding]:
    """A lock cannot be read back; a busy GPU far below its clock, not for power or heat, gives it away."""
    status = facts.guard.status if facts.guard is not None else None
    held = {g.uuid for g in status.gpus if g.state is not ClockState.DEFAULT} if status is not None else set()
    for gpu in facts.gpus:
        info, sample = gpu.info, gpu.sample
        if info is None or sample is None or info.uuid in held:
            continue
        slow = sample.clock_mhz < LIMITED_BELOW * info.default_mhz
        if slow and sample.utilization >= BUSY_UTILIZATION and not sample.event_reasons & POWER_OR_HEAT:
            found = (
                f"{info.uuid} is busy at {sample.clock_mhz} of {info.default_mhz} MHz, not for power or heat"
            )
            advice = "somebody limits its clock; undo it: nvidia-smi -i ID -rgc"
            yield Finding("other clock writers", Level.WARNING, found, advice)


def check_api(facts: Facts) -> Iterator[Finding]:
    if facts.port is not None:
        yield from _check_port(facts.port)
    token = facts.token
    if token.path is None:
        advice = "only if you want them: set api.token_file, then kvwatt token NAME --file FILE"
        yield Finding("token", Level.NOTE, "api.token_file is not set: REST refuses every write", advice)
    elif token.error:
        advice = f"kvwatt token NAME --file {token.path}, owned by the daemon's user, mode 600"
        found = f"{token.path}: {token.error}: the daemon refuses to start"
        yield Finding("token", Level.PROBLEM, found, advice)
    else:
        yield Finding("token", Level.OK, f"{token.path}: {token.tokens} tokens")


def _check_port(port: PortFact) -> Iterator[Finding]:
    where = f"{port.host}:{port.port}"
    if port.ours:
        yield Finding("port", Level.OK, f"a kvwatt daemon answers at {where}")
    elif port.error:
        yield Finding(
            "port", Level.PROBLEM, f"{where}: {port.error}", "set api.host and api.port to a free one"
        )
    else:
        yield Finding("port", Level.OK, f"{where} is free")
    if not is_loopback(port.host) and not port.tls:
        advice = "use 127.0.0.1, or set api.tls_cert, api.tls_key and api.token_file"
        yield Finding("port", Level.WARNING, f"{where} is open to other machines without TLS", advice)


def check_time(facts: Facts) -> Iterator[Finding]:
    time, source = facts.time, facts.time.clocksource or "unknown"
    if time.resolution_s > COARSE_S:
        found = f"the monotonic clock moves in steps of {time.resolution_s * 1e3:g} ms"
        yield Finding("time", Level.PROBLEM, found, "boot with clocksource=tsc, or use another machine")
    elif source in SLOW_CLOCKSOURCES:
        advice = "see `dmesg | grep -i tsc`; reading the time is slow and the daemon costs more"
        yield Finding("time", Level.WARNING, f"clock source {source}", advice)
    else:
        yield Finding("time", Level.OK, f"clock source {source}")
