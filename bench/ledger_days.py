"""Simulated days with a known saving, for bench/ledger.py: many days at once, in steps of a few seconds.

Every day is lived twice with the same requests: controlled but for its holdout windows, and at driver default
throughout. The difference is the true saving. Batch and energy follow the L20 card's laws: requests in flight
are a stock that flows off at the rate of its clock and batch, so that the load carries over from one clock to
the next; the power of both lives is multiplied by the same slow noise (temperature, lengths of context).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.holdout import Arm, Draws, HoldoutParams
from kvwatt_sim import gpu
from kvwatt_sim.cards import Card

Floats = npt.NDArray[np.float64]

STEP_S = 5.0
DAY_S = 86_400.0
STEPS = int(DAY_S / STEP_S)
ROW = 2  # steps in a row of 10 s: windows, their warm-up and what follows are whole rows
PROMPT, OUTPUT = 1150.0, 210.0
BATCHES = np.unique(np.round(np.geomspace(1, 256, 40)))
FLOOR_MHZ = 900
TBT_LIMIT_S = 0.07
ARMS = (Arm.CONTROLLED, Arm.SETTLING, Arm.WARMUP, Arm.DEFAULT)


@dataclass(frozen=True)
class Laws:
    """Of the card at a dozen clocks and 40 batches: (clocks, batches)."""

    clocks: Floats
    step_s: Floats
    prefill_s: Floats  # (clocks,) per prompt token
    decode_w: Floats
    prefill_w: Floats  # (clocks,)
    idle_w: Floats  # (clocks,)

    @classmethod
    def of(cls, card: Card) -> Laws:
        clocks = np.array([*[c for c in card.supported_mhz if c >= FLOOR_MHZ][::9], card.boost_mhz])
        clocks = np.unique(clocks).astype(float)
        kv = PROMPT + OUTPUT
        steps = [[gpu.step(card, f, b, b * kv, 0.0) for b in BATCHES] for f in clocks]
        chunks = [gpu.step(card, f, 0.0, 0.0, 1024.0) for f in clocks]
        return cls(
            clocks,
            np.array([[s.time_s for s in row] for row in steps]),
            np.array([c.time_s / 1024.0 for c in chunks]),
            np.array(
                [
                    [gpu.power_w(card, f, s.compute, s.memory) for s in row]
                    for f, row in zip(clocks, steps, strict=True)
                ]
            ),
            np.array(
                [gpu.power_w(card, f, c.compute, c.memory) for f, c in zip(clocks, chunks, strict=True)]
            ),
            np.array([gpu.power_w(card, f, 0.0, 0.0) for f in clocks]),
        )


def _between(table: Floats, clock: npt.NDArray[np.intp], batch: Floats) -> Floats:
    upper = np.clip(np.searchsorted(BATCHES, batch), 1, len(BATCHES) - 1)
    share = np.clip((batch - BATCHES[upper - 1]) / (BATCHES[upper] - BATCHES[upper - 1]), 0.0, 1.0)
    low, high = table[clock, upper - 1], table[clock, upper]
    return np.asarray(low + share * (high - low))


@dataclass(frozen=True)
class Arrivals:
    """(days, STEPS): tokens that come, and the noise on power."""

    prompt: Floats
    output: Floats
    noise: Floats


def ornstein(rng: np.random.Generator, days: int, sd: float, tau_s: float) -> Floats:
    keep = np.exp(-STEP_S / tau_s)
    shocks = rng.normal(size=(STEPS, days)) * sd * np.sqrt(1.0 - keep**2)
    out = np.empty((STEPS, days))
    value = rng.normal(size=days) * sd
    for i in range(STEPS):
        value = keep * value + shocks[i]
        out[i] = value
    return out.T


def arrivals(rng: np.random.Generator, days: int, peak_per_s: float) -> Arrivals:
    """A daily pattern with its own phase and depth, slow swings, and bursts."""
    hours = (np.arange(STEPS) + 0.5) * STEP_S / 3600.0
    phase, depth = rng.uniform(0, 24, (days, 1)), rng.uniform(0.3, 0.9, (days, 1))
    daily = 1.0 - depth * (0.5 + 0.5 * np.cos(2 * np.pi * (hours[None, :] - phase) / 24.0))
    rate = peak_per_s * rng.uniform(0.5, 1.0, (days, 1)) * daily
    rate = rate * np.exp(ornstein(rng, days, 0.25, 1200.0))
    bursts = rng.random((days, STEPS)) < STEP_S / 3600.0
    for back in range(1, 8):
        bursts[:, back:] |= bursts[:, :-back] & (rng.random((days, 1)) < 0.9)
    rate = rate * np.where(bursts, 2.0, 1.0)
    n = rng.poisson(rate * STEP_S).astype(float)
    prompt = np.maximum(n * PROMPT + np.sqrt(n) * PROMPT * rng.normal(size=n.shape), 0.0)
    output = np.maximum(n * OUTPUT + np.sqrt(n) * OUTPUT * rng.normal(size=n.shape), 0.0)
    noise = np.exp(ornstein(rng, days, 0.02, 900.0) + ornstein(rng, days, 0.03, 60.0))
    return Arrivals(prompt, output, noise)


@dataclass(frozen=True)
class Life:
    """(days, STEPS): energy in joules, tokens done, time between tokens in seconds."""

    energy_j: Floats
    output: Floats
    prompt: Floats
    tbt_s: Floats


def live(laws: Laws, come: Arrivals, held: npt.NDArray[np.bool_]) -> Life:
    """Serve the arrivals: at the fastest clock where `held`, else at the slowest that keeps the limit."""
    days, top = len(come.output), len(laws.clocks) - 1
    shape = (days, STEPS)
    energy, done, tbt = np.empty(shape), np.empty(shape), np.empty(shape)
    stock, prompts = np.zeros(days), np.zeros(days)
    every = np.arange(len(laws.clocks))
    clock = np.full(days, top)
    for i in range(STEPS):
        stock = stock + come.output[:, i]
        prompts = 0.7 * prompts + 0.3 * come.prompt[:, i] / STEP_S
        batch = np.minimum(stock / OUTPUT, BATCHES[-1])
        share = np.minimum(prompts[:, None] * laws.prefill_s[None, :], 0.9)
        wanted = _between(laws.step_s, every[None, :], 1.1 * batch[:, None]) / (1.0 - share)
        fits = wanted <= TBT_LIMIT_S
        chosen = np.where(fits.any(axis=1), fits.argmax(axis=1), top)
        clock = np.where(held[:, i], top, chosen)
        busy = share[np.arange(days), clock]
        token_s = _between(laws.step_s, clock, batch) / (1.0 - busy)
        flow = stock * (1.0 - np.exp(-STEP_S / (OUTPUT * token_s)))
        stock = stock - flow
        running = 1.0 - np.exp(-batch)
        active_w = (1 - busy) * _between(laws.decode_w, clock, batch) + busy * laws.prefill_w[clock]
        watts = running * active_w + (1.0 - running) * laws.idle_w[clock]
        energy[:, i] = watts * STEP_S
        done[:, i], tbt[:, i] = flow, token_s
    return Life(energy * come.noise, done, come.prompt, tbt)


def drawn_arms(
    params: HoldoutParams, come: Arrivals, before: Arrivals, seeds: list[bytes]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Per step: index into ARMS, slot and stratum. The draws of a day go on from those of the day before."""
    slot_steps = int(params.window_s / STEP_S)
    warm, settle = int(params.warmup_s / STEP_S), int(params.settle_s / STEP_S)
    arms = np.zeros(come.output.shape, dtype=np.int8)
    slots = np.zeros(come.output.shape, dtype=np.int32)
    strata = np.zeros(come.output.shape, dtype=np.int8)
    for day, seed in enumerate(seeds):
        draws = Draws(params, seed)
        for life in (before, come):
            load = 0.0
            for start in range(0, STEPS, slot_steps):
                slot = draws.next(start * STEP_S, load)
                end = min(start + slot_steps, STEPS)
                load = float(life.output[day, start:end].sum())
                if life is before:
                    continue
                slots[day, start:end], strata[day, start:end] = slot.number, slot.stratum
                if slot.held:
                    arms[day, start : start + warm] = ARMS.index(Arm.WARMUP)
                    arms[day, start + warm : end] = ARMS.index(Arm.DEFAULT)
                    after = arms[day, end : end + settle]
                    after[after == 0] = ARMS.index(Arm.SETTLING)
    settle_index = ARMS.index(Arm.SETTLING)
    # A window that begins while another settles is a window all the same.
    assert not ((arms == settle_index) & (arms == 2)).any()
    return arms, slots, strata
