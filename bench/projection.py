"""Where batch and KV cache will be in five seconds, against what an engine then does.

    python bench/projection.py [--quick] [--json FILE]

The Azure conversation trace, thinned to 50 % and 75 % of the simulated L20's capacity (3.1 requests/s),
replayed in virtual time on the card's own laws at its top clock. At a decision the projection is given
the requests present, their progress and the compiled model of `kvwatt train`, profiled with 2 % noise;
never the card's law. It is compared every 0.1 s over the next 5 s with

    present     the same engine, forked, without later arrivals: waiting prompts are admitted and computed
    everything  the engine as it went on, later arrivals included, of which only the rate is known

Errors are means of |projected - actual| / actual over decisions and times at which something ran. Per
step, without the clock, the known-length projection is compared too: there the scheduler alone counts.
Lengths are learned from the requests that had finished before the decision. Nothing was tuned here:
options of the length model come from forward validation inside the first half of each trace.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bars import Bar, show, write
from kvwatt import artifact
from kvwatt.compiled import CompiledModel, compile_model
from kvwatt.length_classes import ClassLengths, FinishedRequest
from kvwatt.pace import ClockPace, PaceCorrection
from kvwatt.projection import KnownLengths, RequestLengths, project
from kvwatt.schedule import play
from kvwatt.state import EngineState, RequestState
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, DecayingRate, Traffic
from kvwatt_sim.cards import load
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.engine import Engine, Request
from kvwatt_sim.gpu import capped_clock_mhz, step
from kvwatt_sim.traces import TraceRequest, at_rate
from length_scores import TRACES, LengthScore, azure, frozen, online

CARD = load("l20")
SHAPE = CARD.engine_shape()
CLOCK_MHZ = CARD.boost_mhz
CAPACITY_PER_S, LOADS = 3.1, (0.5, 0.75)
HORIZON_S, SAMPLE_S = 5.0, 0.1
TIMES = np.arange(1, int(HORIZON_S / SAMPLE_S) + 1) * SAMPLE_S - SAMPLE_S / 2
HORIZON_STEPS = 500
WARM_UP_S, MAX_TOKENS, SEED = 600.0, 2048, 3

Floats = npt.NDArray[np.float64]
Path2 = tuple[Floats, Floats]  # batch and KV tokens (whole blocks) at TIMES


@dataclass
class Run:
    """An engine in virtual time on the card's law; `log` has (step end, batch, KV tokens in blocks)."""

    engine: Engine
    now_s: float = 0.0
    log: list[tuple[float, int, int]] = field(default_factory=list)
    steps: list[tuple[int, int, int, float]] = field(default_factory=list)  # load and seconds

    def one_step(self) -> list[FinishedRequest] | None:
        """None when there is nothing to run."""
        plan = self.engine.schedule(self.now_s)
        if plan is None:
            return None
        load_ = (plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, plan.prefill_context_tokens)
        at = step(CARD, CLOCK_MHZ, *load_)
        clock = capped_clock_mhz(CARD, CLOCK_MHZ, at.compute, at.memory)
        held = self.engine.kv_used_blocks * SHAPE.block_size
        batch = self.engine.running
        self.now_s += at.time_s if clock == CLOCK_MHZ else step(CARD, clock, *load_).time_s
        self.log.append((self.now_s, batch, held))
        self.steps.append((plan.decode_batch, plan.kv_tokens, plan.prefill_tokens, self.now_s - plan.start_s))
        events = self.engine.complete(plan, self.now_s)
        records = [event.record for event in events if event.record is not None]
        return [FinishedRequest(r.request.prompt_tokens, r.output_tokens, MAX_TOKENS) for r in records]


def at_times(log: Sequence[tuple[float, int, int]], from_s: float) -> Path2:
    """Batch and KV during the step in progress at each time; zero once nothing runs."""
    ends, batch, held = (
        np.array(column, dtype=np.float64) for column in zip(*log, (np.inf, 0, 0), strict=True)
    )
    where = np.searchsorted(ends, from_s + TIMES, side="right")
    return batch[where], held[where]


@dataclass
class Errors:
    """Relative errors of batch and KV, decision by decision."""

    batch: list[Floats] = field(default_factory=list)
    kv: list[Floats] = field(default_factory=list)

    def add(self, projected: Path2, actual: Path2) -> None:
        some = actual[0] > 0
        self.batch.append(np.abs(projected[0] - actual[0])[some] / actual[0][some])
        self.kv.append(np.abs(projected[1] - actual[1])[some] / actual[1][some])

    @property
    def percent(self) -> tuple[float, float]:
        return _percent(self.batch), _percent(self.kv)


def _percent(errors: list[Floats]) -> float:
    return 100.0 * float(np.concatenate(errors).mean())


class Bench:
    def __init__(self, rate_per_s: float, model: CompiledModel, period_s: float, until_s: float) -> None:
        self.period_s, self.until_s = period_s, until_s
        self.correction = PaceCorrection()
        self.bare, self.live = ClockPace(model, CLOCK_MHZ), ClockPace(model, CLOCK_MHZ, self.correction)
        self.pace = self.live
        self.errors: dict[str, Errors] = {}
        self.step_errors = Errors()
        self.lengths = ClassLengths()
        self._requests = [r for r in at_rate(azure("conv"), rate_per_s, SEED) if r.arrival_s < until_s]
        self._truth = {f"r{i}": r.output_tokens for i, r in enumerate(self._requests)}
        self._rate = DecayingRate(120.0)
        self._done: list[FinishedRequest] = []
        self._open: list[tuple[float, dict[str, Path2]]] = []

    def run(self) -> int:
        """Replay, deciding every period after the warm-up; number of decisions."""
        run, following, decide_s, decisions = Run(Engine(SHAPE, token_events=False)), 0, WARM_UP_S, 0
        seen_s, arrived = 0.0, 0
        with_end = self.until_s - HORIZON_S - 5.0
        while run.now_s < self.until_s - 5.0:
            begin = following
            while following < len(self._requests) and self._requests[following].arrival_s <= run.now_s:
                run.engine.add(_request(following, self._requests[following]))
                following += 1
            arrived += following - begin
            if run.now_s - seen_s >= 0.5:
                self._rate.observe(arrived, run.now_s - seen_s)
                self._learn_pace(run.steps)
                run.steps, arrived, seen_s = [], 0, run.now_s
            if run.now_s >= decide_s and decide_s < with_end and run.engine.running:
                self._decide(run)
                decide_s += self.period_s
                decisions += 1
            ended = run.one_step()
            if ended is None:
                run.now_s = (
                    self._requests[following].arrival_s if following < len(self._requests) else self.until_s
                )
            else:
                self.lengths.update(ended)
                self._done.extend(ended)
        for at_s, guesses in self._open:
            actual = at_times(run.log, at_s)
            for name, guess in guesses.items():
                self._of(name).add(guess, actual)
        return decisions

    def _learn_pace(self, steps: Sequence[tuple[int, int, int, float]]) -> None:
        if steps:
            decode, kv, prefill, seconds = np.array(steps, dtype=np.float64).T
            self.correction.update(decode, prefill, self.bare.step_s(decode, kv, prefill), seconds)

    def _of(self, name: str) -> Errors:
        return self.errors.setdefault(name, Errors())

    def _decide(self, run: Run) -> None:
        inside = run.engine.requests()
        requests = tuple(state for _, state in inside)
        totals = [self._truth[request.request_id] for request, _ in inside]
        kv = float(run.engine.kv_used_blocks * SHAPE.block_size)
        state = EngineState(run.now_s, run.engine.running, run.engine.waiting, kv, requests)
        fork = Run(copy.deepcopy(run.engine), run.now_s)
        while fork.now_s < run.now_s + HORIZON_S and fork.one_step() is not None:
            pass
        actual = at_times(fork.log, run.now_s)
        mean = float(np.mean([r.output_tokens for r in self._done[-1000:]]))
        self.pace = self.bare
        self._of("lengths known, model as profiled").add(self._played(requests, totals), actual)
        self.pace = self.live
        guesses = {
            "lengths known": totals,
            "mean length, then max_tokens": [
                int(mean) if r.output_tokens < mean else MAX_TOKENS for r in requests
            ],
            "mean length, then gone": [max(int(mean), r.output_tokens + 1) for r in requests],
        }
        for name, guess in guesses.items():
            self._of(name).add(self._played(requests, guess), actual)
        self._by_step(requests, totals, fork)
        quiet, busy = self._traffic(0.0), self._traffic(self._rate.per_s)
        self._of("lengths unknown").add(self._projected(state, quiet, self.lengths), actual)
        known = KnownLengths(np.array(totals, dtype=np.float64))
        later = {
            "lengths known": self._projected(state, busy, known),
            "lengths unknown": self._projected(state, busy, self.lengths),
            "mean length, then max_tokens": self._projected(
                state, busy, KnownLengths(np.array(guesses["mean length, then max_tokens"], dtype=np.float64))
            ),
            "nothing arrives, lengths known": self._played(requests, totals),
            "all stays as it is": (np.full(len(TIMES), float(state.running)), np.full(len(TIMES), kv)),
        }
        self._open.append((run.now_s, {f"everything: {name}": path for name, path in later.items()}))

    def _played(self, requests: tuple[RequestState, ...], totals: Sequence[int]) -> Path2:
        """The scheduler played forward, at the compiled model's pace."""
        s = play(requests, totals, SHAPE, HORIZON_STEPS)
        columns = (s.decode_batch, s.kv_tokens, s.prefill_tokens)
        decode, kv, prefill = (column.astype(np.float64) for column in columns)
        ends = np.cumsum(self.pace.step_s(decode, kv, prefill))
        where = np.minimum(np.searchsorted(ends, TIMES, side="right"), HORIZON_STEPS - 1)
        return s.batch[where].astype(np.float64), s.kv_blocks[where].astype(np.float64) * SHAPE.block_size

    def _projected(self, state: EngineState, traffic: Traffic, lengths: RequestLengths) -> Path2:
        p = project(
            state, traffic, SHAPE, 0.02, HORIZON_S * 1.2, lengths=lengths, pace=self.pace, per_doubling=4
        )
        batch = np.interp(TIMES, p.times_s, p.batch_mean)
        return batch, np.interp(TIMES, p.times_s, p.kv_mean_blocks * SHAPE.block_size)

    def _by_step(self, requests: tuple[RequestState, ...], totals: Sequence[int], fork: Run) -> None:
        steps = len(fork.log)
        s = play(requests, totals, SHAPE, steps)
        _, batch, held = (np.array(column, dtype=np.float64) for column in zip(*fork.log, strict=True))
        self.step_errors.add(
            (s.batch.astype(np.float64), s.kv_blocks.astype(np.float64) * SHAPE.block_size), (batch, held)
        )

    def _traffic(self, rate_per_s: float) -> Traffic:
        recent = self._done[-1000:]
        prompt = float(np.mean([r.prompt_tokens for r in recent]))
        output = float(np.mean([r.output_tokens for r in recent]))
        return Traffic(
            arrival_per_s=rate_per_s,
            arrival_upper_per_s=rate_per_s,
            dispersion=1.0,
            prompt_mean_tokens=prompt,
            prompt_sd_tokens=prompt,
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


def show_errors(console: Console, load_ratio: float, bench: Bench, decisions: int) -> None:
    shown = Table(title=f"Load {load_ratio:.0%} of capacity, {decisions} decisions: mean relative error, %")
    for column in ("", "batch", "KV"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, errors in {"lengths known, per step": bench.step_errors, **bench.errors}.items():
        shown.add_row(name, *(f"{value:.3f}" for value in errors.percent))
    console.print(shown)


def show_lengths(console: Console, scores: dict[str, LengthScore]) -> None:
    shown = Table(
        title="Expected remaining tokens: observed / expected by decile, second half from the first"
    )
    for column in ("", *(str(d + 1) for d in range(10)), "worst", "by chance", "all"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, score in scores.items():
        ratios = (f"{ratio:.3f}" for ratio in score.ratios)
        shown.add_row(name, *ratios, f"{score.worst:.3f}", f"{score.chance:.3f}", f"{score.mean_ratio:.3f}")
    console.print(shown)


def bars_of(benches: dict[float, Bench], scores: dict[str, LengthScore]) -> list[Bar]:
    bars = []
    for ratio, bench in benches.items():
        known, unknown = bench.errors["lengths known"].percent, bench.errors["lengths unknown"].percent
        rivals = [bench.errors[name].percent for name in bench.errors if name.startswith("mean length")]
        at = f"load {ratio:.2f}:"
        bars.append(Bar(f"{at} known lengths, batch error %", known[0], 0.19, "lower"))
        bars.append(Bar(f"{at} known lengths, KV error %", known[1], 2.26, "lower"))
        for part, kind in enumerate(("batch", "KV")):
            best = min(rival[part] for rival in rivals)
            bars.append(
                Bar(f"{at} unknown / better mean-length error, {kind}", unknown[part] / best, 0.5, "lower")
            )
    bars += [
        Bar(f"lengths, {name}: worst decile off by", s.worst, 0.05, "lower") for name, s in scores.items()
    ]
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help="one load, 20 minutes of the trace")
    arguments = parser.parse_args()
    if not TRACES.is_dir():
        print(f"traces not found at {TRACES}", file=sys.stderr)
        return 77
    console = Console()
    model = artifact.load(cached_model(CARD))
    compiled = compile_model(model, (CARD.supported_mhz[-2], CLOCK_MHZ), SHAPE)
    benches: dict[float, Bench] = {}
    for ratio in LOADS[:1] if arguments.quick else LOADS:
        benches[ratio] = Bench(ratio * CAPACITY_PER_S, compiled, 5.0, 1200.0 if arguments.quick else 3400.0)
        show_errors(console, ratio, benches[ratio], benches[ratio].run())
    kinds: dict[str, Callable[[Sequence[TraceRequest]], LengthScore]] = {"frozen": frozen, "online": online}
    pairs = [(kind, how) for kind in ("conv", "code") for how in kinds]
    scores = {f"{kind} {how}": kinds[how](azure(kind)) for kind, how in track(pairs, transient=True)}
    show_lengths(console, scores)
    bars = bars_of(benches, scores)
    show(bars, "Bars")
    tables = {str(r): {n: e.percent for n, e in b.errors.items()} for r, b in benches.items()}
    write(arguments.json, bars, errors_percent=tables, ratios={n: s.ratios for n, s in scores.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
