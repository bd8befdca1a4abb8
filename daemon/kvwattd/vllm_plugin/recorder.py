"""Turns the statistics of a step into a record and sends it. Every step of vLLM passes here: microseconds.

What started and finished by a record that could not be sent goes with the next one, up to a limit.
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
    Started,
)

KEPT_FINISHED = 4 * MAX_FINISHED
KEPT_STARTED = 4 * MAX_FIRST_TOKENS  # groups of one step; most have one request


@dataclass(slots=True)
class _Engine:
    """One engine of the server (data parallel: several): its records are numbered and summed on their own."""

    sequence: int = 0
    generated: int = 0
    finished: int = 0
    decode_steps: int = 0
    unsent: deque[Finished] = field(default_factory=lambda: deque(maxlen=KEPT_FINISHED))
    unsent_started: deque[Started] = field(default_factory=lambda: deque(maxlen=KEPT_STARTED))

    def batch(self) -> tuple[list[Finished], list[Started]]:
        """What goes with the next record: as much as a datagram holds."""
        if not self.unsent and not self.unsent_started:
            return [], []
        left, groups = MAX_FIRST_TOKENS, []
        for group in self.unsent_started:
            left -= len(group.ttft_s)
            if left < 0:
                break
            groups.append(group)
        return list(islice(self.unsent, MAX_FINISHED)), groups

    def sent(self, finished: int, started: int) -> None:
        """So many of what `batch` gave were taken."""
        for _ in range(finished):
            self.unsent.popleft()
        for _ in range(started):
            self.unsent_started.popleft()


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
        if getattr(iteration, "inter_token_latencies_iter", None):
            told.decode_steps += 1
        if not self._sender.listening(now_s):
            self._sender.dropped += 1
            return
        if ended:
            told.unsent.extend(reading.finished(ended, getattr(iteration, "iteration_timestamp", None)))
        began = reading.started(iteration, told.decode_steps)
        if began is not None:
            told.unsent_started.append(began)
        told.sequence += 1
        finished, started = told.batch()
        record = self._step(scheduler, iteration, (engine, told), now_s, (finished, started))
        self._encoder.encode_into(record, self._buffer)
        if self._sender.send(self._buffer, now_s):
            told.sent(len(finished), len(started))

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
        news: tuple[list[Finished], list[Started]],
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
            finished=news[0],
            wall_s=time.time(),
            decode_steps_total=told.decode_steps,
            started=news[1],
        )
