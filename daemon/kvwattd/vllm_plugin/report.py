"""Tells the daemon once a second what the scheduler did, over the tap's socket."""

from __future__ import annotations

import os

import msgspec

from kvwattd.vllm_plugin.gate import Gate
from kvwattd.vllm_plugin.sender import Sender
from kvwattd.vllm_plugin.wire import MAX_NAME, SCHEDULER_VERSION, SchedulerRecord

EVERY_S = 1.0


class Report:
    """Of one engine. `path` empty: nobody is told. Times are of the monotonic clock and passed in."""

    def __init__(self, path: str, instance: str, model: str, engine: int) -> None:
        self._sender = Sender(path) if path else None
        self._who = (os.getpid(), instance[:MAX_NAME], model[:MAX_NAME], engine)
        self._next_s = -1.0

    def step(
        self, now_s: float, gate: Gate, steps: int, faults: int, state: tuple[int, bool, int, str]
    ) -> SchedulerRecord | None:
        """Send what is due. `state`: held now, told by the daemon, message errors, why aside."""
        if now_s < self._next_s:
            return None
        self._next_s = now_s + EVERY_S
        record = self.record(now_s, gate, steps, faults, state)
        if self._sender is not None and self._sender.listening(now_s):
            self._sender.send(msgspec.msgpack.encode(record), now_s)
        return record

    def record(
        self, now_s: float, gate: Gate, steps: int, faults: int, state: tuple[int, bool, int, str]
    ) -> SchedulerRecord:
        """The totals as they stand."""
        held, told, errors, aside = state
        return SchedulerRecord(
            SCHEDULER_VERSION,
            now_s,
            *self._who,
            steps=steps,
            cap_tokens=gate.lengths.cap(None),
            horizon_steps=gate.last_horizon,
            held=held,
            held_total=gate.ghost.requests,
            held_steps=dict(gate.totals.steps),
            avoided_total=gate.ghost.avoided,
            faults_total=faults,
            told=told,
            message_errors=errors,
            aside=aside,
        )

    def close(self) -> None:
        """Let go of the socket."""
        if self._sender is not None:
            self._sender.close()
