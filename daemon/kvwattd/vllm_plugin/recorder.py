"""Turns the statistics of a step into a record and sends it. Every step of vLLM passes here: microseconds.

Finished requests of a record that could not be sent go with the next one, up to a limit.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from kvwattd.vllm_plugin import reading
from kvwattd.vllm_plugin.sender import Sender
from kvwattd.vllm_plugin.wire import (
    INSTANCE_ENV,
    MAX_FINISHED,
    MAX_FIRST_TOKENS,
    MAX_NAME,
    VERSION,
    Finished,
    Record,
)

KEPT_FINISHED = 4 * MAX_FINISHED


@dataclass(slots=True)
class _Engine:
    """One engine of the server (data parallel: several): its records are numbered and summed on their own."""

    sequence: int = 0
    generated: int = 0
    finished: int = 0
    unsent: deque[Finished] = field(default_factory=lambda: deque(maxlen=KEPT_FINISHED))


class Recorder:
    """The tap of one API server process."""

    def __init__(self, vllm_config: object, path: str, instance: str | None = None) -> None:
        self._sender = Sender(path)
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray(4096)
        given = os.environ.get(INSTANCE_ENV, "") if instance is None else instance
        self._instance = given[:MAX_NAME]
        self._model = reading.served_name(vllm_config)
        self._servers = reading.api_servers(vllm_config)
        self._pid = os.getpid()
        self._engines: dict[int, _Engine] = {}

    @property
    def dropped(self) -> int:
        """Records that nobody took."""
        return self._sender.dropped

    def record(self, scheduler: object, iteration: object, engine: int) -> None:
        """Send one step; `scheduler` or `iteration` may be None."""
        now_s = time.monotonic()
        told = self._engines.get(engine) or self._engines.setdefault(int(engine), _Engine())
        told.generated += reading.whole(getattr(iteration, "num_generation_tokens", None))
        ended = getattr(iteration, "finished_requests", None)
        told.finished += len(ended) if ended else 0
        if not self._sender.listening(now_s):
            self._sender.dropped += 1
            return
        if ended:
            told.unsent.extend(reading.finished(ended))
        told.sequence += 1
        batch = list(islice(told.unsent, MAX_FINISHED)) if told.unsent else []
        record = self._step(scheduler, iteration, (engine, told), now_s, batch)
        self._encoder.encode_into(record, self._buffer)
        if self._sender.send(self._buffer, now_s):
            for _ in batch:
                told.unsent.popleft()

    def flush(self) -> None:
        """Send what found the queue full, if no step comes to do it."""
        self._sender.flush(time.monotonic())

    def close(self) -> None:
        """Let go of the socket."""
        self._sender.close()

    def _step(
        self,
        scheduler: object,
        iteration: object,
        of: tuple[int, _Engine],
        now_s: float,
        ended: list[Finished],
    ) -> Record:
        engine, told = of
        gaps = getattr(iteration, "inter_token_latencies_iter", None)
        first = getattr(iteration, "time_to_first_tokens_iter", None)
        usage = getattr(scheduler, "kv_cache_usage", None)
        return Record(
            version=VERSION,
            sequence=told.sequence,
            sent_s=now_s,
            sender=self._pid,
            servers=self._servers,
            instance=self._instance,
            model=self._model,
            engine=int(engine),
            running=reading.maybe_whole(getattr(scheduler, "num_running_reqs", None)),
            waiting=reading.waiting(scheduler),
            kv_usage=None if usage is None else float(usage),
            step_s=float(min(gaps)) if gaps else None,
            decodes=len(gaps) if gaps else 0,
            itl_sum_s=float(sum(gaps)) if gaps else 0.0,
            generation_tokens=reading.whole(getattr(iteration, "num_generation_tokens", None)),
            prompt_tokens=reading.computed_prompt_tokens(iteration),
            chunk_tokens=reading.chunk_tokens(scheduler),
            preempted=reading.whole(getattr(iteration, "num_preempted_reqs", None)),
            generation_tokens_total=told.generated,
            finished_total=told.finished,
            dropped_total=self._sender.dropped,
            first_tokens_s=[float(s) for s in first[:MAX_FIRST_TOKENS]] if first else [],
            finished=ended,
        )
