"""The tap's record: one msgpack array per engine step, in one unix datagram of at most MAX_BYTES.

Both ends use these types. An array may grow at its end: an older receiver ignores what it does not know, an
older sender's record takes the defaults. Any other change needs a new VERSION, and a receiver refuses
versions that it does not know.
"""

from __future__ import annotations

import msgspec

VERSION = 1
MAX_BYTES = 60_000
MAX_FINISHED = 256  # in one record; more are sent with the next ones
MAX_FIRST_TOKENS = 512
MAX_NAME = 200  # characters
DEFAULT_SOCKET = "/run/kvwatt-tap/tap.sock"
SOCKET_ENV = "KVWATT_TAP_SOCKET"  # empty: no tap
INSTANCE_ENV = "KVWATT_TAP_INSTANCE"


class Finished(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One finished request. None: the server's version does not tell."""

    reason: int  # vLLM's FinishReason: 0 stop, 1 length, 2 abort, 3 error, 4 repetition
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    cached_tokens: int | None = None
    e2e_s: float = 0.0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    arrival_s: float | None = None  # on the server's wall clock


class Started(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The requests whose first token came in one step."""

    at_s: float  # the server's wall clock, from which its latencies count
    decode_step: int  # Record.decode_steps_total of that step
    prompt_tokens: int  # of all of them together, cache hits included
    ttft_s: list[float]


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One engine step as the API server saw it."""

    version: int
    sequence: int  # of this sender and engine; a gap is a record that was lost
    sent_s: float  # the sender's monotonic clock, the same as the receiver's on one host
    sender: int  # process id
    servers: int  # API server processes: with more than one, each sees a part of every step
    instance: str  # $KVWATT_TAP_INSTANCE, or empty
    model: str  # served model name
    engine: int  # data-parallel rank
    running: int | None
    waiting: int | None
    kv_usage: float | None  # 0..1
    step_s: float | None  # smallest inter-token latency: from the step before to this one
    decodes: int  # requests that got a token after their first
    itl_sum_s: float
    generation_tokens: int
    prompt_tokens: int  # computed, cache hits taken off; booked when the prompt is done
    chunk_tokens: int | None  # prompt tokens of this very step, where the server logs iteration details
    preempted: int
    generation_tokens_total: int  # since the sender started
    finished_total: int
    dropped_total: int  # records that nobody took
    first_tokens_s: list[float] = []
    finished: list[Finished] = []
    wall_s: float | None = None  # the server's wall clock at `sent_s`; None: an older sender
    decode_steps_total: int = 0  # steps with `decodes` > 0
    started: list[Started] = []  # of this step, and of steps before whose record could not be sent


SCHEDULER_VERSION = 101  # first field of the other kind of datagram


class SchedulerRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What kvwatt's scheduler did, sent about once a second from the engine's own process; totals since its
    start."""

    version: int
    sent_s: float
    sender: int
    instance: str
    model: str
    engine: int
    steps: int
    cap_tokens: int  # what a new request is expected to make
    horizon_steps: int  # how long the one held last, or any, should live
    held: int  # requests waiting while there is a reason to hold, now
    held_total: int  # requests held at least once
    held_steps: dict[str, int]  # by reason: overflow, budget, tbt, e2e
    avoided_total: int  # preemptions, estimated
    faults_total: int  # steps left to vLLM by an exception
    told: bool  # by the daemon, and fresh
    message_errors: int = 0
    aside: str = ""  # why it does nothing at all
