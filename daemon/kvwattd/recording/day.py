"""Where the loop meets the recording: hand it an instance after each page and each GPU reading."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from kvwattd.instance import InstanceRuntime
from kvwattd.recording.taking import Taking
from kvwattd.recording.writer import Recorder

log = logging.getLogger(__name__)


class Recording:
    """Records every instance that it is handed; without a folder, nothing. No call here waits for a disk.

    Requests are told by the tap: while it is not relied on, none are recorded.
    """

    def __init__(self, folder: Path | None, max_bytes: int, wall: Callable[[], float] = time.time) -> None:
        self._recorder = Recorder(folder, max_bytes) if folder is not None else None
        self._wall = wall
        self._takings: dict[str, Taking] = {}

    def start(self) -> None:
        """Make the folder; where that fails the daemon runs on without a recording."""
        if self._recorder is None:
            return
        try:
            self._recorder.start()
        except OSError as error:
            log.warning("nothing is recorded: %s: %s", error.filename, error.strerror)
            self._recorder = None

    def close(self) -> None:
        """Write what is queued."""
        if self._recorder is not None:
            self._recorder.close()

    def on_page(self, run: InstanceRuntime) -> None:
        """After the instance took in a page."""
        page, judged = run.observation.snapshot, run.observation.judged
        if self._recorder is None or page is None:
            return
        taking = self._takings.setdefault(run.name, Taking(run.name, self._recorder.put))
        taking.on_shape(run.shape(), page.model_name, run.gpus, run.slo, self._wall())
        if judged is not None:
            taking.on_finished(judged.finished, self._wall())

    def on_gpu(self, run: InstanceRuntime) -> None:
        """After the instance took in a reading of its GPUs."""
        taking = self._takings.get(run.name)
        if taking is not None and run.gpu_fault is None:
            taking.on_gpu(run.samples, self._wall())
