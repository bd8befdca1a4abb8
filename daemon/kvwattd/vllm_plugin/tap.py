"""The stat logger that vLLM loads from the entry point `vllm.stat_logger_plugins`.

vLLM calls it on the API server's event loop after every step, and an exception there would end the engine:
none leaves. After FAULTS_TOLERATED of them in a row the tap stops for good, and says so.
"""

from __future__ import annotations

import logging
import os

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from kvwattd.vllm_plugin.recorder import Recorder
from kvwattd.vllm_plugin.wire import DEFAULT_SOCKET, SOCKET_ENV

log = logging.getLogger("vllm.kvwatt_tap")  # under vLLM's own logger, whose handlers it thereby uses

FAULTS_TOLERATED = 10


class KvwattTap(AggregateStatLoggerBase):  # type: ignore[misc]  # vLLM has no types here
    """One record per step to the kvwatt daemon, dropped when it does not listen."""

    def __init__(self, vllm_config: object, engine_indexes: list[int] | None = None, **_: object) -> None:
        path = os.environ.get(SOCKET_ENV, DEFAULT_SOCKET)
        self._recorder = Recorder(vllm_config, path) if path else None
        self._faults = 0

    def record(
        self,
        scheduler_stats: object,
        iteration_stats: object,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
        **_: object,
    ) -> None:
        """Send one step."""
        if self._recorder is None:
            return
        try:
            self._recorder.record(scheduler_stats, iteration_stats, engine_idx)
        except Exception:
            self._failed()
        else:
            self._faults = 0

    def log_engine_initialized(self) -> None:
        """Say where records go."""
        if self._recorder is not None:
            log.info("kvwatt tap: records go to %s", os.environ.get(SOCKET_ENV, DEFAULT_SOCKET))

    def log(self) -> None:
        """vLLM calls this every few seconds, busy or not."""
        if self._recorder is not None:
            self._recorder.flush()

    def _failed(self) -> None:
        self._faults += 1
        log.exception("kvwatt tap: a step could not be recorded (%d in a row)", self._faults)
        if self._faults >= FAULTS_TOLERATED and self._recorder is not None:
            log.error("kvwatt tap: stopped after %d faults; serving goes on without it", self._faults)
            self._recorder.close()
            self._recorder = None
