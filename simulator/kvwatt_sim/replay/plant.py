"""One simulated engine on one simulated GPU group in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.state import EngineShape, EngineSnapshot, EngineState, GpuSample, RequestState
from kvwatt_sim.cards import Card
from kvwatt_sim.replay.gaps import Gaps
from kvwatt_sim.replay.kernel import DECODE, Kernel
from kvwatt_sim.replay.outcome import Outcome, Served
from kvwatt_sim.traces import TraceRequest

MAX_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompt and output tokens so far of everyone inside: the first `running` are the batch in its order,
    the others the queue. `places`: where they stand in the trace."""

    running: int
    places: list[int]
    prompts: list[int]
    outputs: list[int]


class VirtualPlant:
    """Engine and GPU driven to any later moment by `advance`; `energy_j` is the integral of power.

    `room`: how many requests may come by `add` later. Raises ValueError for requests out of order and for
    one that can never fit the KV cache.
    """

    def __init__(
        self, card: Card, shape: EngineShape, requests: Sequence[TraceRequest], room: int = 0
    ) -> None:
        self.card = card
        self.shape = shape
        table = [(r.arrival_s, r.prompt_tokens, min(r.output_tokens, MAX_TOKENS)) for r in requests]
        arrival, prompt, total = np.array(table, dtype=np.float64).reshape(-1, 3).T
        _check(shape, arrival, prompt + total - 1.0)
        lengths = (prompt.astype(np.int64), total.astype(np.int64))
        self._kernel = Kernel(card, shape, arrival, *lengths, MAX_TOKENS, room)
        self._c = self._kernel.c
        self._arrays = self._kernel.arrays

    @property
    def now_s(self) -> float:
        return float(self._c.now_s)

    @property
    def energy_j(self) -> float:
        """Joules of the whole group so far."""
        return float(self._c.energy_j)

    @property
    def power_w(self) -> float:
        """Watts of the whole group at this moment."""
        return float(self._c.power_w)

    @property
    def clock_mhz(self) -> int:
        """The clock in force."""
        return int(self._c.clock_mhz)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return int(self._c.running)

    @property
    def waiting(self) -> int:
        """Requests queued, preempted ones included."""
        return int(self._c.waiting)

    @property
    def kv_usage(self) -> float:
        """vLLM's `kv_cache_usage_perc`: 0..1."""
        return float(1.0 - self._c.free_blocks / self._c.budget_blocks)

    @property
    def steps(self) -> int:
        """Engine steps so far."""
        return int(self._c.steps)

    @property
    def unfinished(self) -> int:
        """Requests that were given and have not finished, whether they have arrived or not."""
        return int(self._c.n_requests - self._c.finished)

    @property
    def done(self) -> bool:
        """Every request has arrived and finished."""
        return self.unfinished == 0

    def add(self, request: TraceRequest) -> None:
        """One more request, after all others. Raises ValueError as the constructor does."""
        last_s = self._arrays["arrival_s"][self._c.n_requests - 1] if self._c.n_requests else 0.0
        output = min(request.output_tokens, MAX_TOKENS)
        times = np.array([last_s, request.arrival_s])
        _check(self.shape, times, np.array([0.0, request.prompt_tokens + output - 1.0]))
        self._kernel.add(request.arrival_s, request.prompt_tokens, output)

    def set_clock(self, clock_mhz: int | None, latency_s: float) -> None:
        """Lock the clock (None: driver default); it takes effect `latency_s` later."""
        self._c.switch_at_s = self._c.now_s + latency_s
        self._c.pending_mhz = clock_mhz if clock_mhz is not None else self.card.boost_mhz

    def set_prefill_clock(self, clock_mhz: int) -> None:
        """Another clock for every step with prompt tokens, switched to and back in no time: an ideal."""
        self._c.prefill_mhz = clock_mhz

    def hold_arrivals(self, hold: bool = True) -> None:
        """From now on who arrives waits until it is released; those behind it wait, too."""
        self._c.hold_new = int(hold)

    def release(self, place: int) -> None:
        """Admit the request at this place of the trace in its turn."""
        self._arrays["held"][place] = 0

    def cap_admission(self, blocks: int | None) -> None:
        """Admit only what leaves at most so many KV blocks in use (None: all there are). What runs may
        grow beyond; an empty batch takes whoever is first."""
        self._c.admit_blocks = self._c.budget_blocks if blocks is None else blocks

    def seat(self, rule: Callable[[VirtualPlant], int] | None) -> None:
        """From now on `rule` says before each step in which somebody waits how many may run in it (None: as
        many as the engine takes). Who runs already is never thrown out by it."""
        self._kernel.ask_seats(None if rule is None else lambda: rule(self))

    def sequences(self) -> Sequences:
        """Everyone inside, between two steps."""
        a, who = self._arrays, self._kernel.everyone()
        made = np.where(
            a["phase"][who] == DECODE,
            self._c.decode_steps - self._c.in_flight + a["output_offset"][who],
            a["generated"][who],
        )
        return Sequences(self.running, who.tolist(), a["prompt"][who].tolist(), made.tolist())

    def finished_outputs(self, since: int) -> list[int]:
        """Output tokens of those that finished, in that order, less the first `since` of them."""
        a, finished = self._arrays, int(self._c.finished)
        return a["generated"][a["finish_order"][since:finished]].tolist() if finished > since else []

    @property
    def preemptions(self) -> int:
        """Times that a request was thrown out of the batch."""
        return int(self._c.preemptions)

    @property
    def computed_tokens(self) -> int:
        """Prompt and output tokens computed so far, those of preempted requests anew each time."""
        return int(self._c.computed_tokens)

    def queue(self) -> tuple[int, ...]:
        """Places in the trace of those that wait, in their order."""
        return tuple(self._kernel.everyone()[self.running :].tolist())

    def held(self, place: int) -> bool:
        """The request at this place waits for its release."""
        return bool(self._arrays["held"][place])

    def advance(self, until_s: float) -> None:
        """Run until `until_s`. A clock change takes effect in the middle of a step, as on a real GPU."""
        self._kernel.advance(until_s)

    def state(self) -> EngineState:
        """Batch and queue with every request, as the server's own scheduler knows them."""
        return EngineState(
            observed_s=self.now_s,
            running=self.running,
            waiting=self.waiting,
            kv_used_tokens=float((self._c.budget_blocks - self._c.free_blocks) * self.shape.block_size),
            requests=self.request_states(),
        )

    def request_states(self) -> tuple[RequestState, ...]:
        """Everyone inside: the batch in its order, then the queue."""
        a, who = self._arrays, self._kernel.everyone()
        decoding = a["phase"][who] == DECODE
        generated = self._c.decode_steps - self._c.in_flight + a["output_offset"][who]
        computed = np.where(decoding, a["prompt"][who], a["computed"][who])
        columns = (
            a["arrival_s"][who].tolist(),
            a["prompt"][who].tolist(),
            computed.tolist(),
            np.where(decoding, generated, a["generated"][who]).tolist(),
            a["first_s"][who].tolist(),
        )
        return tuple(
            RequestState(
                arrival, prompt, done, output, MAX_TOKENS, first_token_s=None if first < 0 else first
            )
            for arrival, prompt, done, output, first in zip(*columns, strict=True)
        )

    def true_output_tokens(self) -> tuple[int, ...]:
        """What nobody can know live: the final output length of each of `state().requests`, in order."""
        return tuple(self._arrays["total"][self._kernel.everyone()].tolist())

    @property
    def decode_steps(self) -> int:
        """Steps so far that gave a token to a request after its first."""
        return int(self._c.decode_steps - self._c.in_flight)

    @property
    def generated_tokens(self) -> int:
        """Tokens so far, of unfinished requests too."""
        return int(self._c.generation_tokens)

    @property
    def started(self) -> int:
        """Requests that have their first token."""
        return int(self._c.started)

    @property
    def finished(self) -> int:
        """Requests that have their last token."""
        return int(self._c.finished)

    def first_tokens(self, since: int) -> tuple[int, list[float]]:
        """Prompt tokens and TTFT of those that got their first token after the first `since` of them."""
        a = self._arrays
        who = a["first_order"][since : self._c.started]
        return int(a["prompt"][who].sum()), (a["first_s"][who] - a["arrival_s"][who]).tolist()

    def served(self, since: int = 0) -> Served:
        """The requests that finished so far, in that order, less the first `since` of them."""
        a = self._arrays
        who = a["finish_order"][since : self._c.finished].copy()
        names = ("arrival_s", "prompt", "generated", "scheduled_s", "first_s", "last_s", "preempted")
        return Served(who, *(a[name][who] for name in names))

    def gaps(self) -> Gaps:
        """Every time between two tokens of one request so far."""
        return Gaps(self._arrays["gaps"].copy())

    def outcome(self, clock_changes: int) -> Outcome:
        """The run so far."""
        served = self.served()
        return Outcome(
            energy_j=self.energy_j,
            duration_s=self.now_s,
            tokens=int(served.output_tokens.sum()),
            clock_changes=clock_changes,
            steps=self.steps,
            served=served,
            gaps=self.gaps(),
        )

    def snapshot(self) -> EngineSnapshot:
        """The metrics page at this moment."""
        c, page = self._c, self._kernel.histogram
        return EngineSnapshot(
            observed_s=self.now_s,
            model_name=self.card.name,
            engine="0",
            running=self.running,
            waiting=self.waiting,
            waiting_for_capacity=self.waiting,
            kv_usage=self.kv_usage,
            block_size=self.shape.block_size,
            num_blocks=self.shape.num_blocks,
            asleep=False,
            prompt_tokens_total=c.prompt_tokens,
            prompt_tokens_cached_total=0,
            generation_tokens_total=c.generation_tokens,
            preemptions_total=c.preemptions,
            requests_finished_total=c.finished,
            iterations=page("iterations"),
            prompt_lengths=page("prompts"),
            generation_lengths=page("outputs"),
            ttft_s=page("ttft"),
            tbt_s=page("tbt"),
            itl_s=page("itl"),
            e2e_s=page("e2e"),
        )

    def sample(self, uuid: str) -> GpuSample:
        """The GPU reading at this moment (all GPUs of the group as one)."""
        busy = 1.0 if self.running else 0.0
        clock_mhz = int(self._c.actual_mhz)
        return GpuSample(self.now_s, uuid, clock_mhz, self.power_w, self.energy_j, 50.0, busy, 0)


def _check(shape: EngineShape, arrival_s: npt.NDArray[np.float64], longest: npt.NDArray[np.float64]) -> None:
    if np.any(np.diff(arrival_s) < 0.0):
        late = int(np.argmax(np.diff(arrival_s) < 0.0)) + 1
        raise ValueError(f"request {late} arrives at {arrival_s[late]:g} s, before the one above it")
    too_long = longest > shape.kv_capacity_tokens
    if too_long.any():
        which = int(np.argmax(too_long))
        raise ValueError(
            f"request {which} needs {longest[which]:.0f} tokens of KV cache; "
            f"the engine has {shape.kv_capacity_tokens}"
        )
