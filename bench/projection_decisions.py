"""One replay of the trace with a decision every few seconds, and what each projection said then.

Part of bench/projection.py, which says what is compared with what.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from kvwatt.compiled import CompiledModel
from kvwatt.decaying_rate import DecayingRate
from kvwatt.length_classes import ClassLengths, FinishedRequest
from kvwatt.pace import ClockPace, PaceCorrection
from kvwatt.projection import KnownLengths, RequestLengths, project
from kvwatt.schedule import play
from kvwatt.state import EngineState
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, Traffic
from kvwatt_sim.engine import Engine, Request
from kvwatt_sim.traces import TraceRequest, at_rate
from length_scores import azure
from projection_replay import (
    CLOCK_MHZ,
    HORIZON_S,
    MAX_TOKENS,
    SHAPE,
    TIMES,
    Errors,
    Floats,
    Run,
    Trajectory,
    at_times,
)

HORIZON_STEPS = 500
WARM_UP_S, PERIOD_S, SEED = 600.0, 5.0, 3
HINT_SD = float(np.log(1.3) / 1.645)
Z90 = 1.2816


@dataclass(frozen=True, slots=True)
class Moment:
    """A decision: requests in the scheduler's order, their true lengths, and recent means."""

    state: EngineState
    totals: tuple[int, ...]
    hints: tuple[float, ...]
    mean_prompt: float
    sd_prompt: float
    mean_output: float

    @property
    def then_max_tokens(self) -> list[int]:
        """Everyone has the mean length; who exceeds it, max_tokens (the paper's rule)."""
        done = (r.output_tokens for r in self.state.requests)
        return [int(self.mean_output) if n < int(self.mean_output) else MAX_TOKENS for n in done]

    @property
    def then_gone(self) -> list[int]:
        """Everyone has the mean length; who exceeds it ends with the next token."""
        return [max(int(self.mean_output), r.output_tokens + 1) for r in self.state.requests]


@dataclass(frozen=True, slots=True)
class Guess:
    mean: Trajectory
    upper: Trajectory | None = None


class Replay:
    """One run of the trace; `errors` by name of the projection."""

    def __init__(self, rate_per_s: float, model: CompiledModel, until_s: float) -> None:
        self.until_s = until_s
        self.correction = PaceCorrection()
        self.bare, self.live = ClockPace(model, CLOCK_MHZ), ClockPace(model, CLOCK_MHZ, self.correction)
        self.errors: dict[str, Errors] = {}
        self.lengths = ClassLengths()
        self.decisions = 0
        self._requests = [r for r in at_rate(azure("conv"), rate_per_s, SEED) if r.arrival_s < until_s]
        noise = np.random.default_rng(SEED).lognormal(0.0, HINT_SD, len(self._requests))
        told = [(r.output_tokens, r.output_tokens * x) for r, x in zip(self._requests, noise, strict=True)]
        self._told = {f"r{i}": pair for i, pair in enumerate(told)}
        self._rate = DecayingRate(120.0)
        self._done: list[FinishedRequest] = []
        self._open: list[tuple[float, dict[str, Guess]]] = []

    def run(self) -> None:
        """Serve the trace, deciding every period after the warm-up."""
        run, following, seen_s, arrived, decide_s = (
            Run(Engine(SHAPE, token_events=False)),
            0,
            0.0,
            0,
            WARM_UP_S,
        )
        while run.now_s < self.until_s:
            first = following
            while following < len(self._requests) and self._requests[following].arrival_s <= run.now_s:
                run.engine.add(_request(following, self._requests[following]))
                following += 1
            arrived += following - first
            if run.now_s - seen_s >= 0.5:
                self._rate.observe(arrived, run.now_s - seen_s)
                self._learn_pace(run.steps)
                run.steps, arrived, seen_s = [], 0, run.now_s
            if decide_s <= run.now_s < self.until_s - 2 * HORIZON_S and run.engine.running:
                self._decide(run)
                decide_s += PERIOD_S
            ended = run.one_step()
            if ended is not None:
                self._learn_lengths(ended)
            else:
                more = following < len(self._requests)
                run.now_s = self._requests[following].arrival_s if more else self.until_s
        for at_s, guesses in self._open:
            self._score(guesses, at_times(run.log, at_s))

    def _learn_pace(self, steps: Sequence[tuple[int, int, int, float]]) -> None:
        if steps:
            decode, kv, prefill, seconds = np.array(steps, dtype=np.float64).T
            self.correction.update(decode, prefill, self.bare.step_s(decode, kv, prefill), seconds)

    def _learn_lengths(self, ended: Sequence[tuple[str, FinishedRequest]]) -> None:
        requests = [replace(r, hint_tokens=self._told[name][1]) for name, r in ended]
        self.lengths.update(requests)
        self._done.extend(requests)

    def _score(self, guesses: dict[str, Guess], actual: Trajectory) -> None:
        for name, guess in guesses.items():
            self.errors.setdefault(name, Errors()).add(guess.mean, actual, guess.upper)

    def _moment(self, run: Run) -> Moment:
        inside = run.engine.requests()
        kv = float(run.engine.kv_used_blocks * SHAPE.block_size)
        states = tuple(state for _, state in inside)
        told = [self._told[request.request_id] for request, _ in inside]
        recent = self._done[-1000:]
        return Moment(
            EngineState(run.now_s, run.engine.running, run.engine.waiting, kv, states),
            tuple(total for total, _ in told),
            tuple(hint for _, hint in told),
            float(np.mean([r.prompt_tokens for r in recent])),
            float(np.std([r.prompt_tokens for r in recent])),
            float(np.mean([r.output_tokens for r in recent])),
        )

    def _decide(self, run: Run) -> None:
        moment = self._moment(run)
        fork = Run(copy.deepcopy(run.engine), run.now_s)
        while fork.now_s < run.now_s + HORIZON_S and fork.one_step() is not None:
            pass
        self.decisions += 1
        self._score_steps(moment, fork)
        self._score(self._present(moment), at_times(fork.log, run.now_s))
        self._open.append((run.now_s, self._everything(moment)))

    def _present(self, moment: Moment) -> dict[str, Guess]:
        requests = zip(moment.state.requests, moment.hints, strict=True)
        hinted = replace(moment.state, requests=tuple(replace(r, hint_tokens=h) for r, h in requests))
        quiet = self._traffic(moment, 0.0)
        return {
            "lengths known, model as profiled": self._played(moment, moment.totals, self.bare),
            "lengths known": self._played(moment, moment.totals, self.live),
            "lengths unknown": self._projected(moment.state, quiet, self.lengths),
            "lengths unknown, hints": self._projected(hinted, quiet, self.lengths),
            "mean length, then max_tokens": self._played(moment, moment.then_max_tokens, self.live),
            "mean length, then gone": self._played(moment, moment.then_gone, self.live),
        }

    def _everything(self, moment: Moment) -> dict[str, Guess]:
        known = KnownLengths(np.array(moment.totals, dtype=np.float64))
        mean = KnownLengths(np.array(moment.then_max_tokens, dtype=np.float64))
        projected = partial(self._projected, moment.state, self._traffic(moment, self._rate.per_s))
        flat = np.ones(len(TIMES))
        stays = (flat * moment.state.running, flat * moment.state.kv_used_tokens)
        return {
            "everything: lengths known": projected(known),
            "everything: lengths unknown": projected(self.lengths),
            "everything: mean length, then max_tokens": projected(mean),
            "everything: nothing arrives": self._played(moment, moment.totals, self.live),
            "everything: all stays as it is": Guess(stays),
        }

    def _played(self, moment: Moment, totals: Sequence[int], pace: ClockPace) -> Guess:
        """The scheduler played forward, at the compiled model's pace."""
        s = play(moment.state.requests, totals, SHAPE, HORIZON_STEPS)
        columns = (s.decode_batch, s.kv_tokens, s.prefill_tokens)
        ends = np.cumsum(pace.step_s(*(column.astype(np.float64) for column in columns)))
        where = np.minimum(np.searchsorted(ends, TIMES, side="right"), HORIZON_STEPS - 1)
        return Guess((s.batch[where].astype(np.float64), _tokens(s.kv_blocks[where])))

    def _projected(self, state: EngineState, traffic: Traffic, lengths: RequestLengths) -> Guess:
        p = project(
            state,
            traffic,
            SHAPE,
            0.02,
            1.2 * HORIZON_S,
            Z90,
            lengths=lengths,
            pace=self.live,
            per_doubling=4,
        )
        kv_tokens = p.kv_mean_blocks * SHAPE.block_size
        columns = (p.batch_mean, kv_tokens, p.batch_upper, p.kv_upper_tokens)
        batch, kv, batch_upper, kv_upper = (np.interp(TIMES, p.times_s, column) for column in columns)
        return Guess((batch, kv), (batch_upper, kv_upper))

    def _score_steps(self, moment: Moment, fork: Run) -> None:
        s = play(moment.state.requests, moment.totals, SHAPE, len(fork.log))
        actual = np.array(fork.log, dtype=np.float64)
        guess = (s.batch.astype(np.float64), _tokens(s.kv_blocks))
        self.errors.setdefault("lengths known, per step", Errors()).add(guess, (actual[:, 1], actual[:, 2]))

    def _traffic(self, moment: Moment, rate_per_s: float) -> Traffic:
        prompt, output = moment.mean_prompt, moment.mean_output
        return Traffic(
            arrival_per_s=rate_per_s,
            recent_per_s=rate_per_s,
            arrival_upper_per_s=rate_per_s,
            dispersion=max(self._rate.dispersion, 1.0),
            prompt_mean_tokens=prompt,
            prompt_sd_tokens=moment.sd_prompt,
            prompt_quantiles_tokens=2 * prompt * PROMPT_LEVELS,
            output_mean_tokens=output,
            output_short_tokens=2 * output * SHORT_LEVELS,
            output_high_tokens=3 * output,
            unstarted=0.0,
            oldest_wait_s=0.0,
            burst_tokens=0.0,
            exposure_s=60.0,
            finished=float(len(self._done)),
            lengths=self.lengths,
        )


def _request(i: int, r: TraceRequest) -> Request:
    return Request(f"r{i}", r.arrival_s, r.prompt_tokens, r.output_tokens, MAX_TOKENS)


def _tokens(blocks: np.ndarray) -> Floats:
    return np.asarray(blocks * SHAPE.block_size, dtype=np.float64)
