"""Checks of what is served: engine and metrics, the model and whether it is for this hardware. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kvwatt.manifest import Manifest
from kvwattd.config import InstanceConfig
from kvwattd.doctor.facts import Facts, Finding, InstanceFact, Level
from kvwattd.telemetry.report import LayoutReport

STEERED = frozenset({"vLLM", "SGLang"})
TRAIN = "run `kvwatt profile` against this server, then `kvwatt train`"


def check_instances(facts: Facts) -> Iterator[Finding]:
    pooled = facts.config is not None and facts.config.pool.enabled
    silent = [item for item in facts.instances if item.layout is None] if pooled else []
    for item in facts.instances:
        if item in silent and len(silent) < len(facts.instances):
            yield Finding(
                f"vLLM {item.config.name}", Level.NOTE, "does not run now: the pool starts it if needed"
            )
        else:
            yield from _check_instance(item)


def _check_instance(item: InstanceFact) -> Iterator[Finding]:
    kind = item.layout.kind if item.layout is not None else "vLLM"
    check, url = f"{kind} {item.config.name}", item.config.url
    if item.layout is None:
        advice = f"start vLLM or correct instance.url; `curl {url}/metrics` must show its metrics"
        yield Finding(check, Level.PROBLEM, item.error, advice)
        return
    version = f"{kind} {item.version}" if item.version else f"{kind} of unknown version"
    if not item.layout.accepted:
        yield _refused(check, version, item.layout)
        return
    yield Finding(check, Level.OK, f"{version} at {url}, metrics layout {item.layout.layout}")
    yield from _check_engine(check, item.config, item.layout)
    for caveat in item.layout.caveats:
        yield Finding(check, Level.NOTE, caveat, "see docs/compatibility.md")
    if item.layout.absent_optional:
        found = f"without {', '.join(item.layout.absent_optional)}"
        yield Finding(check, Level.NOTE, found, f"a newer {kind} tells more; nothing is guessed meanwhile")


def _refused(check: str, version: str, layout: LayoutReport) -> Finding:
    if layout.kind not in STEERED:
        advice = "this engine is not steered: clocks stay at driver default (docs/compatibility.md)"
        return Finding(check, Level.PROBLEM, f"{version}: {', '.join(layout.missing)}", advice)
    found = f"{version}: its metrics lack {', '.join(layout.missing)}"
    advice = f"kvwatt does not control it; closest known layout: {layout.kind} {layout.versions}"
    return Finding(check, Level.PROBLEM, found, advice)


def _check_engine(check: str, config: InstanceConfig, layout: LayoutReport) -> Iterator[Finding]:
    """Several engines share a page: exactly one must be meant."""
    fitting = [
        (engine, model)
        for engine, model in layout.engines
        if config.engine in (None, engine) and config.model_name in (None, model)
    ]
    if len(fitting) == 1:
        return
    offered = ", ".join(f"engine {engine!r} of model {model!r}" for engine, model in layout.engines)
    wanted = f"engine={config.engine!r}, model_name={config.model_name!r}"
    which = "several engines fit" if fitting else "no engine fits"
    advice = f"set instance.engine and instance.model_name to one of: {offered}"
    yield Finding(check, Level.PROBLEM, f"{which} {wanted}", advice)


def check_model(facts: Facts) -> Iterator[Finding]:
    model = facts.model
    if model is None:
        return
    if not model.exists:
        found = f"none at {model.path}: clocks stay at driver default, the daemon learns there"
        yield Finding("model", Level.WARNING, found, TRAIN)
        return
    if model.manifest is None:
        yield Finding("model", Level.PROBLEM, model.error, f"it is damaged: {TRAIN} again")
        return
    manifest = model.manifest
    yield Finding("model", Level.OK, f"{manifest.hardware}, tp={manifest.tp}, {manifest.rows} measurements")
    yield from _check_hardware(facts, manifest)
    yield from _check_fit(facts, manifest)


def _check_hardware(facts: Facts, manifest: Manifest) -> Iterator[Finding]:
    for name in sorted({gpu.info.name for gpu in facts.gpus if gpu.info is not None}):
        if name != manifest.hardware:
            found = f"trained on {manifest.hardware}, this GPU is {name}: it is refused"
            yield Finding("model", Level.PROBLEM, found, TRAIN)
    low, high = manifest.clock_range_mhz
    for gpu in facts.gpus:
        if gpu.info is not None and not any(low <= clock <= high for clock in gpu.info.supported_mhz):
            found = f"trained from {low:g} to {high:g} MHz, where GPU {gpu.selector} has no clock"
            yield Finding("model", Level.PROBLEM, found, TRAIN)


def _check_fit(facts: Facts, manifest: Manifest) -> Iterator[Finding]:
    for item in facts.instances:
        if item.config.tp != manifest.tp:
            found = (
                f"trained with tp={manifest.tp}, {item.config.name} has tp={item.config.tp}: it is refused"
            )
            yield Finding("model", Level.PROBLEM, found, TRAIN)
        if item.version and manifest.vllm_version not in ("unknown", item.version):
            found = f"trained with vLLM {manifest.vllm_version}, {item.config.name} runs {item.version}"
            yield Finding("model", Level.WARNING, found, f"its errors are corrected online; better {TRAIN}")
