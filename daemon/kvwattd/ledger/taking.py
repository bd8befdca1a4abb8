"""What goes into the ledger, taken from what the daemon observes of one instance. Pure but for the sink.

An interval closes when it is as long as configured, and when arm, slot or mode change, so that each row is of
one kind. Energy is that of the readings in it; the reading across a change counts for what is not measured.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from kvwatt.counterfactual import AtClocks, at_clocks, spread
from kvwatt.holdout import HELD, Arm
from kvwatt.state import Binding
from kvwattd.config import Mode
from kvwattd.instance import InstanceRuntime
from kvwattd.ledger.counting import JudgedRequests, Sums, Tokens, Whole
from kvwattd.ledger.entry import NO_STRATUM, Entry
from kvwattd.promises import Promises
from kvwattd.regime import DECIDES, Regime
from kvwattd.shadow.account import would_error_ratio

CLOCKS_JUDGED = 8
LONGEST_S = 3.0  # between two readings of the GPUs
MEASURED = frozenset({Arm.CONTROLLED, Arm.DEFAULT})
IN_CONTROL = frozenset({Arm.CONTROLLED, Arm.SETTLING})
Kind = tuple[Mode, Arm, int, int, int]  # mode, arm; stratum, number and place of a held slot


class Taking:
    """Intervals of one instance, given to `put`. `run_id`: the daemon's start."""

    def __init__(
        self, run: InstanceRuntime, run_id: int, interval_s: float, put: Callable[[Entry], None]
    ) -> None:
        self.run = run
        self._run_id = run_id
        self._interval_s = interval_s
        self._put = put
        self._tokens, self._judged, self._promises = Tokens(), JudgedRequests(), Promises()
        self._promises.attainment = self._judged
        self._would = JudgedRequests()  # in shadow mode, at the clocks decided on
        self._sums, self._whole = Sums(), Whole()
        self._bindings: Counter[Binding] = Counter(run.bindings)
        self._kind: Kind | None = None
        self._opened_s, self._opened_ms = 0.0, 0
        # The first interval of each instance ends at another moment: they are not all closed at once.
        self._length_s = interval_s * (0.5 + zlib.crc32(run.name.encode()) / 2.0**33)
        self._last_s: float | None = None
        self._totals: dict[str, tuple[float, float]] = {}

    def on_page(self) -> None:
        """After the instance took in a page."""
        seen = self.run.observation
        if seen.snapshot is None:
            return
        if seen.snapshot is seen.first:
            self._promises.restart()
        self._tokens.on_page(seen.snapshot, seen.snapshot is seen.first)
        self._promises.on_page(seen.snapshot, self.run.slo, seen.judged)
        if self.run.regime is Regime.SHADOW:
            for metric, kept in self.run.shadow.engine.newest.items():
                self._would.observe(metric, seen.snapshot.observed_s, kept)

    def on_gpu(self, now_s: float, wall_s: float, mode: Mode) -> None:
        """After the instance took in a reading of its GPUs."""
        dt_s = now_s - self._last_s if self._last_s is not None else 0.0
        self._last_s = now_s
        new = self._kind_now(mode)
        # What lies across a change belongs to the side that is not measured; nobody looked at a gap.
        across = (mode, Arm.NONE, NO_STRATUM, 0, 0) if dt_s > LONGEST_S else new
        if self._kind not in (None, across) and across[1] not in MEASURED:
            self.close(wall_s - dt_s)
            self._open(across, now_s - dt_s, wall_s - dt_s)
        self._add(dt_s)
        if self._kind is None:
            self._open(new, now_s, wall_s)
        elif self._kind != new or now_s - self._opened_s >= self._length_s:
            self.close(wall_s)
            self._open(new, now_s, wall_s)

    def close(self, wall_s: float) -> None:
        """Hand over the interval in progress."""
        if self._kind is None or self._sums.time_s <= 0.0:
            return
        self._put(self._entry(self._kind, wall_s))
        self._sums, self._bindings = Sums(), Counter(self.run.bindings)
        self._length_s = self._interval_s
        self._kind = None

    def _open(self, kind: Kind, now_s: float, wall_s: float) -> None:
        self._kind, self._opened_s, self._opened_ms = kind, now_s, round(wall_s * 1e3)

    def _kind_now(self, mode: Mode) -> Kind:
        holdout = self.run.holdout
        slot = holdout.slot
        if slot is None or holdout.arm not in HELD:
            return mode, holdout.arm, NO_STRATUM, 0, 0
        return mode, holdout.arm, slot.stratum, slot.number, slot.place

    def _add(self, dt_s: float) -> None:
        """Fold in what was used since the reading before, under what has been in force since."""
        used_j, estimated_j = self._used()
        if dt_s <= 0.0:
            return
        sums, run = self._sums, self.run
        sums.time_s += dt_s
        sums.energy_j += used_j
        sums.estimated_j += estimated_j
        sums.regimes[str(run.regime)] += round(1e3 * dt_s)
        clocks = [sample.clock_mhz for sample in run.samples.values()]
        if clocks:
            sums.clock(sum(clocks) / len(clocks), min(clocks), max(clocks), dt_s)
        if run.regime in DECIDES and run.last is not None and run.gpus:
            default_mhz = min(info.default_mhz for info in run.gpus)
            sums.decided_s[run.last.clock_mhz or default_mhz] += dt_s

    def _used(self) -> tuple[float, float]:
        """Joules since the last time, and those of them that are estimates; a GPU seen anew begins at 0."""
        used_j = estimated_j = 0.0
        for uuid, account in self.run.energy.items():
            before = self._totals.get(uuid)
            if before is not None:
                used_j += max(account.total_j - before[0], 0.0)
                estimated_j += max(account.estimated_j - before[1], 0.0)
            self._totals[uuid] = (account.total_j, account.estimated_j)
        return used_j, estimated_j

    def _entry(self, kind: Kind, wall_s: float) -> Entry:
        sums, whole = self._sums, self._whole
        mode, arm, stratum, slot, place = kind
        prompt, generation, requests = self._tokens.take()
        judged = self._at_clocks(prompt, generation)
        time_ms = whole("time", 1e3 * sums.time_s)
        fixed, work_mj = _told(judged, sums.time_s, time_ms)
        requests_judged: dict[str, Any] = {**self._judged.take(), **self._would.take("would_")}
        to_default, to_decided = _factors(judged, sums, mode, arm)
        # Of the same model in every interval: the errors add up as they are, not in square.
        error = would_error_ratio(self.run.model.power_error_ratio, to_decided) if to_decided != 1.0 else 0.0
        return Entry(
            instance=self.run.name,
            start_ms=self._opened_ms,
            end_ms=max(round(wall_s * 1e3), self._opened_ms),
            mode=str(mode),
            arm=arm,
            stratum=stratum,
            run=self._run_id,
            slot=slot,
            place=place,
            gpus=len(self.run.gpus),
            clock_min_mhz=sums.clock_min_mhz,
            clock_max_mhz=sums.clock_max_mhz,
            time_ms=time_ms,
            energy_mj=whole("energy", 1e3 * sums.energy_j),
            estimated_mj=whole("estimated", 1e3 * sums.estimated_j),
            prompt_tokens=prompt,
            generation_tokens=generation,
            requests=requests,
            **requests_judged,
            clock_mhz_ms=whole("clock", 1e3 * sums.clock_mhz_s),
            default_mj=whole("default", 1e3 * sums.energy_j * to_default),
            would_mj=whole("would", 1e3 * sums.energy_j * to_decided),
            would_error_mj=whole("error", 1e3 * sums.energy_j * error),
            work_mj=work_mj,
            work_ms=time_ms if judged is not None else 0,
            regimes=dict(sums.regimes),
            bindings={str(name): n for name, n in (self.run.bindings - self._bindings).items()},
            fixed=fixed,
        )

    def _at_clocks(self, prompt_tokens: int, generation_tokens: int) -> AtClocks | None:
        """What the model says of this work, where there is a model and the traffic is known."""
        run, seconds = self.run, self._sums.time_s
        compiled, shape, traffic = run.model.compiled, run.shape(), run.observation.traffic(run.slo)
        if compiled is None or shape is None or traffic is None:
            return None
        per_s = prompt_tokens / seconds, generation_tokens / seconds
        return at_clocks(compiled, shape, run.slo, traffic, *per_s, run.params.reaction_s)


def _told(judged: AtClocks | None, seconds: float, time_ms: int) -> tuple[dict[str, list[int]], int]:
    """Per clock millijoules, milliseconds kept, milliseconds judged; millijoules at default."""
    if judged is None:
        return {}, 0
    chosen = spread(judged.clocks_mhz, CLOCKS_JUDGED)
    used_mj = [round(1e3 * seconds * float(watts)) for watts in judged.power_w]
    fixed = {
        str(judged.clocks_mhz[i]): [used_mj[i], time_ms if judged.feasible[i] else 0, time_ms] for i in chosen
    }
    return fixed, used_mj[-1]


def _factors(judged: AtClocks | None, sums: Sums, mode: Mode, arm: Arm) -> tuple[float, float]:
    """What measured energy is multiplied by: to driver default, and in shadow mode to what was decided.

    Steady power by the model at one clock over that at another, for the work that was done. The model is
    asked only for the ratio: its error of level cancels.
    """
    if judged is None:
        return 1.0, 1.0
    clocks, watts = np.array(judged.clocks_mhz), judged.power_w
    if arm in IN_CONTROL and sums.clock_mhz_s > 0.0:
        return float(watts[-1] / np.interp(sums.clock_mhz_s / sums.time_s, clocks, watts)), 1.0
    if mode is Mode.SHADOW and sums.decided_s:
        # Clock by clock: power is no straight line, and the mean clock's is less than the clocks' mean power.
        at_s = np.array(list(sums.decided_s.values()))
        ratios = np.interp(list(sums.decided_s), clocks, watts) / watts[-1]
        return 1.0, float(1.0 + (ratios - 1.0) @ at_s / max(sums.time_s, at_s.sum()))
    return 1.0, 1.0
