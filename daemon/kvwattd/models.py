"""Loads and compiles models away from the loop, and says for each instance why it has none.

An artifact that appears or changes while the daemon runs is taken up without a restart, and so is a version
refitted online or rolled back to. A model of other hardware is refused: a wrong model is worse than none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvwatt.artifact import (
    MANIFEST,
    POWER_TREES,
    STEP_TREES,
    ArtifactError,
    load_compiled,
    load_manifest,
    verify,
)
from kvwatt.compiled import CompiledModel
from kvwatt.manifest import Manifest
from kvwatt.state import EngineShape
from kvwattd.api.schemas import ModelView
from kvwattd.instance import InstanceRuntime, ModelSlot
from kvwattd.model_versions import SHIPPED, VersionStore

log = logging.getLogger(__name__)

WAITING_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class _Key:
    """What a compiled table depends on; a change of any of it means compiling anew."""

    directory: Path
    version: int
    stamps_ns: tuple[int | None, ...]  # of every file: a copy in progress is looked at again
    clocks_mhz: tuple[int, ...]
    shape: EngineShape
    hardware: tuple[str, ...]

    def same_model(self, other: _Key | None) -> bool:
        """Whether only the clocks or the engine differ."""
        return other is not None and (self.directory, self.stamps_ns) == (other.directory, other.stamps_ns)


class Models:
    """The artifact directory of the daemon and what was made of it for each instance.

    `stores` holds the refitted versions of each instance, where there may be any.
    """

    def __init__(
        self,
        path: Path,
        reload_s: float,
        permitted: Callable[[InstanceRuntime], tuple[int, ...]],
        stores: Mapping[str, VersionStore] | None = None,
    ) -> None:
        self._path = path
        self._stores = stores or {}
        self._wanted = asyncio.Event()
        self._busy = asyncio.Lock()
        self._reload_s = reload_s
        self._permitted = permitted
        self._keys: dict[str, _Key | None] = {}
        self._manifests: dict[str, Manifest] = {}
        # A table is tens of megabytes: instances of one kind share it.
        self._loaded: dict[_Key, tuple[Manifest, CompiledModel]] = {}

    def pause_s(self, runs: Iterable[InstanceRuntime]) -> float:
        """When to look again: soon while somebody has no model, else at the configured period."""
        waiting = any(run.model.compiled is None and not run.model.refused for run in runs)
        return min(WAITING_PERIOD_S, self._reload_s) if waiting else self._reload_s

    def wake(self) -> None:
        """Look again at once."""
        self._wanted.set()

    async def pause(self, runs: Iterable[InstanceRuntime]) -> None:
        """Wait until it is time to look again."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it loses a cancellation that meets the event.
            async with asyncio.timeout(self.pause_s(runs)):
                await self._wanted.wait()
        self._wanted.clear()

    def serving(self, run: InstanceRuntime) -> int | None:
        """Number of the version in use, 0 for the shipped model; None without a model."""
        key = self._keys.get(run.name)
        return key.version if key is not None and run.model.compiled is not None else None

    def forget(self, name: str) -> None:
        """The instance is gone."""
        self._keys.pop(name, None)
        self._manifests.pop(name, None)

    def invalidate(self, run: InstanceRuntime, reason: str) -> None:
        """Nothing is decided by what was compiled until it is compiled anew."""
        if run.model.compiled is not None:
            self._keys.pop(run.name, None)
            run.model = ModelSlot(None, reason)
        self.wake()

    async def refresh(self, run: InstanceRuntime) -> None:
        """Take up a new artifact, another version, new clocks or a new engine shape for one instance."""
        async with self._busy:  # REST refreshes too: an older load must not overtake a newer one
            await self._refresh(run)

    async def _refresh(self, run: InstanceRuntime) -> None:
        shape = run.shape()
        if shape is None or not run.gpus:
            return
        key = await asyncio.to_thread(self._key, run, shape)
        if run.name in self._keys and key == self._keys[run.name]:
            return
        before = self._keys.get(run.name)
        self._keys[run.name] = key
        if key is None:
            self._drop(run, f"no model in {self._path}: run `kvwatt profile` and `kvwatt train`")
            return
        try:
            known = self._loaded.get(key)
            manifest, compiled = known if known is not None else await asyncio.to_thread(self._load, key)
        except (ArtifactError, ValueError) as error:
            if key.version != SHIPPED:
                await self._step_back(run, key.version, str(error))
                return
            self._drop(run, f"model refused: {error}", refused=True)
            return
        if run.model.compiled is not None and not key.same_model(before):
            run.observation.on_model()
        self._loaded[key] = manifest, compiled
        used = set(self._keys.values())
        self._loaded = {other: table for other, table in self._loaded.items() if other in used}
        self._manifests[run.name] = manifest
        run.model = ModelSlot(compiled, None, power_error_ratio=manifest.errors.get("fold_power_mape", 0.0))
        clocks = compiled.clocks_mhz
        log.info(
            "instance %s: model ready, version %d, %d clocks %d-%d MHz",
            run.name,
            key.version,
            len(clocks),
            clocks[0],
            clocks[-1],
        )

    async def _step_back(self, run: InstanceRuntime, version: int, detail: str) -> None:
        """A version that cannot be used never serves; the one before it is tried."""
        log.warning("instance %s: model version %d does not serve: %s", run.name, version, detail)
        await asyncio.to_thread(self._stores[run.name].condemn, version, detail)
        del self._keys[run.name]
        await self._refresh(run)

    def _key(self, run: InstanceRuntime, shape: EngineShape) -> _Key | None:
        directory, version = self._path, SHIPPED
        if run.name in self._stores:
            serving = self._stores[run.name].serving()
            directory, version = serving.path, serving.number
        stamps_ns = tuple(_stamp_ns(directory / name) for name in (MANIFEST, STEP_TREES, POWER_TREES))
        if stamps_ns[0] is None:
            return None
        names = tuple(info.name for info in run.gpus)
        return _Key(directory, version, stamps_ns, self._permitted(run), shape, names)

    def _load(self, key: _Key) -> tuple[Manifest, CompiledModel]:
        manifest = load_manifest(key.directory)
        for name in key.hardware:
            if name != manifest.hardware:
                raise ArtifactError(f"trained on {manifest.hardware!r}, this GPU is {name!r}")
        if manifest.tp != key.shape.tp:
            raise ArtifactError(f"trained with tp={manifest.tp}, this instance has tp={key.shape.tp}")
        low, high = manifest.clock_range_mhz
        clocks = tuple(clock for clock in key.clocks_mhz if low <= clock <= high)
        if not clocks:
            raise ArtifactError(f"trained between {low:g} and {high:g} MHz; no permitted clock lies there")
        if key.version != SHIPPED:
            verify(key.directory)
        return manifest, load_compiled(key.directory, clocks, key.shape)

    def _drop(self, run: InstanceRuntime, reason: str, refused: bool = False) -> None:
        log.log(logging.WARNING if refused else logging.INFO, "instance %s: %s", run.name, reason)
        self._manifests.pop(run.name, None)
        run.model = ModelSlot(None, reason, refused)

    def view(self, run: InstanceRuntime) -> ModelView:
        """What REST tells about the model of one instance."""
        manifest, slot = self._manifests.get(run.name), run.model
        if manifest is None or slot.compiled is None:
            state = "refused" if slot.refused else "missing"
            return ModelView(state=state, reason=slot.missing or "", path=str(self._path))
        return ModelView(
            state="ready",
            path=str(self._path),
            version=self.serving(run),
            hardware=manifest.hardware,
            vllm_version=manifest.vllm_version,
            created=manifest.created,
            samples=manifest.rows,
            step_error_ratio=manifest.errors.get("fold_decode_mape"),
            power_error_ratio=manifest.errors.get("fold_power_mape"),
            upper_factor=slot.compiled.upper_factor,
            ranges=dict(manifest.ranges),
        )


def _stamp_ns(path: Path) -> int | None:
    """When it was changed, None where it cannot be seen."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
