"""A lower bound on the energy of every run that keeps the promises, by weak duality.

Covered is whatever locks clocks among the permitted ones (or leaves them to the driver), as often as it
likes and in no time, knowing everything. Why it is a bound:

1. Energy = sum over steps of E + idle power x idle time >= p D + sum of G, where p is the power of idling
   at the lowest clock, D >= `until_s` the duration and G = E - p T >= 0 what a step of T seconds takes on
   top.
2. With K decodes, n prompt tokens, c tokens of KV cache read and q query-key pairs, G and T are linear in c
   and q at a given clock (`laws`) and grow with K and n. A step at several clocks is a mixture of steps.
   Prices on the work that satisfy, for every clock and every load (K, n, c, q) that a step can have,

       G + (m + v K) T >= a K + b n + d c + e q                                                 (*)

   make sum of G >= a sum K + b sum n + d sum c + e sum q - m sum T - v sum K T.
3. The sums on the right are known: the work of all requests (recomputing after preemption is more), sum T
   <= D, and sum K T = the time from first to last token summed over requests, for each of which it is at
   most min(TBT limit x gaps, E2E limit). For the lower cost of a smaller K, (*) also holds with K, c
   counting only the requests that keep TBT and E2E.
4. At most 1 % of requests miss TBT and 1 % E2E; all their work is given away, of whichever requests are
   worth most.
5. The duration is open at its end: m <= p keeps m D <= m `until_s` + p (D - `until_s`).

Any prices give a bound; good ones come from a linear program, solved with cuts from (*). Loads are
checked in cells (cost at the lower corner, work at the upper), and the prices are scaled down until (*)
holds in every cell. TTFT and single gaps (ITL) are relaxed away, and so is that requests come one by one
to an engine that does not wait for company: the bound is not attainable. (Windows of time with prices of
their own, so that work cannot move to quieter minutes, raised it by 0.3 % at most and were dropped.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from kvwatt_sim.replay import laws
from kvwatt_sim.replay.scenario import QUANTILE, Case

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDS = 60
TOLERANCE = 1e-4  # of the right side of (*), left to the scaling at the end
WORKS = 4  # decode steps, prompt tokens, KV tokens read, query-key pairs: priced a, b, d, e
TIME, RESIDENCE, PRICES = 4, 5, 6  # the columns of m and v, and their number


def lower_bound_j(case: Case) -> float:
    """Joules that no run of `case` keeping its promises gets by with.

    Raises ValueError without promises on TBT and E2E: a request could wait for ever."""
    slo = case.promises.slo
    if slo.e2e is None or slo.tbt is None:
        raise ValueError("a bound needs promises on TBT and E2E")
    program = _Program(case, slo.tbt.limit_s, slo.e2e.limit_s)
    prices = program.solve()
    for _ in range(ROUNDS):
        if not program.cut(prices):
            break
        prices = program.solve()
    return program.value(program.safe(prices))


@dataclass(frozen=True, slots=True)
class _Cells:
    """What a step takes, by (clock, cell of K, cell of n): cost at the cell's lower corner, without c, q."""

    k_low: Floats
    k_high: Floats
    n_high: Floats
    g_j: Floats
    t_s: Floats
    possible: npt.NDArray[np.bool_]  # (K cells, n cells): the lower corner fits a step
    g_kv: Floats  # (clocks,): joules and seconds per token of KV cache, and per pair
    t_kv: Floats
    g_pair: Floats
    t_pair: Floats
    idle_w: float


def _cells(case: Case) -> _Cells:
    card, shape = case.card, case.shape
    clocks = np.array(_clocks(case), dtype=np.float64)
    k_edges = np.unique(np.r_[0:65, 68 : shape.max_num_seqs + 1 : 4, shape.max_num_seqs])
    k_edges = k_edges[k_edges <= shape.max_num_seqs]
    most = shape.max_num_batched_tokens
    n_edges = np.unique(np.r_[0:16, 16:256:8, 256:1024:32, 1024:most:16, most])
    n_edges = n_edges[n_edges <= most]
    k_low, k_high = _lows_highs(k_edges)
    n_low, n_high = _lows_highs(n_edges)
    zero = np.zeros(1)
    rest = laws.Work(np.ones(1), zero, zero)
    idle_w = float(laws.energy_j(card, clocks[:1], rest)[0])

    def extra(f: Floats, k: Floats, kv: Floats, n: Floats, pairs: Floats) -> tuple[Floats, Floats]:
        done = laws.work(card, f, k, kv, n, pairs)
        return laws.energy_j(card, f, done) - idle_w * done.time_s, done.time_s

    f = clocks[:, None, None]
    g_j, t_s = extra(f, k_low[None, :, None], zero, n_low[None, None, :], zero)
    one, base = np.ones(1), extra(clocks, np.ones(1), zero, zero, zero)
    with_kv, with_pair = extra(clocks, one, one, zero, zero), extra(clocks, one, zero, zero, one)
    possible = (k_low[:, None] + n_low[None, :] <= most) & (k_low[:, None] + n_low[None, :] > 0)
    return _Cells(
        k_low,
        k_high,
        n_high,
        g_j,
        t_s,
        possible,
        with_kv[0] - base[0],
        with_kv[1] - base[1],
        with_pair[0] - base[0],
        with_pair[1] - base[1],
        idle_w,
    )


def _lows_highs(edges: Ints) -> tuple[Floats, Floats]:
    """Cells (last edge + 1 .. edge] of whole numbers, as lowest and highest member."""
    highs = edges.astype(np.float64)
    return np.concatenate(([highs[0]], highs[:-1] + 1.0)), highs


def _clocks(case: Case) -> tuple[int, ...]:
    """Every clock that can occur: the power cap may leave a lower one than was asked for."""
    card, lowest = case.card, case.clocks_mhz[0]
    law, r = card.power, lowest / card.power.f_ref_mhz
    v = max(law.v_min, 1.0 + law.v_slope * (r - 1.0))
    dynamic_w = r * v * v * (law.compute_w + law.memory_clock_w) + law.memory_w
    capped = law.idle_w + law.idle_slope_w * r + dynamic_w > card.power_cap_w
    return tuple(c for c in card.supported_mhz if capped or c >= lowest)


class _Program:
    """The linear program over [a, b, d, e, m, v], t and s_i.

    m t + sum s_i with s_i >= value_i - t, s_i >= 0 is the worth of the most valuable requests."""

    def __init__(self, case: Case, tbt_limit_s: float, e2e_limit_s: float) -> None:
        self._cells = _cells(case)
        self._until_s = case.until_s
        prompt = np.array([r.prompt_tokens for r in case.requests], dtype=np.float64)
        gaps = np.array([r.output_tokens - 1 for r in case.requests], dtype=np.float64)
        kv = gaps * prompt + gaps * (gaps + 1.0) / 2.0
        self._work = np.stack([gaps, prompt, kv, prompt * prompt / 2.0], axis=1)
        self._residence_s = np.minimum(tbt_limit_s * gaps, e2e_limit_s)
        self._given_away = 2 * int((1.0 - QUANTILE) * len(prompt) + 1e-9)
        # Least and most KV cache that the decodes of each cell can read.
        least, most = float(prompt.min()), float((prompt + gaps + 1.0).max())
        self._kv = (self._cells.k_low * least, self._cells.k_high * most)
        self._cuts: list[Floats] = []
        for f in range(0, len(self._cells.g_kv), 12):
            for k, n in ((0, -1), (1, 0), (min(64, len(self._cells.k_low) - 1), 0)):
                self._add(f, k, n % len(self._cells.n_high), 0)
                self._add(f, k, n % len(self._cells.n_high), 1)

    def _add(self, f: int, k: int, n: int, end: int) -> None:
        """(*) at a cell's corner as a row: its coefficients on the prices, and G."""
        cells, kv = self._cells, float(self._kv[end][k])
        t_s = float(cells.t_s[f, k, n] + kv * cells.t_kv[f])
        g_j = float(cells.g_j[f, k, n] + kv * cells.g_kv[f])
        row = [cells.k_high[k], cells.n_high[n], kv, 0.0, -t_s, -cells.k_low[k] * t_s, g_j]
        self._cuts.append(np.array(row))

    def solve(self) -> Floats:
        """The best prices under the cuts so far."""
        n = len(self._work)
        gain = np.concatenate((self._work.sum(axis=0), [-self._until_s, -self._residence_s.sum()]))
        c = np.concatenate((-gain, [self._given_away], np.ones(n)))
        values = np.concatenate((self._work, np.zeros((n, 1)), -self._residence_s[:, None]), axis=1)
        most = sparse.hstack([values, -np.ones((n, 1)), -sparse.identity(n)])
        cells, cuts = self._cells, np.array(self._cuts)
        pairs = np.zeros((len(cells.g_pair), PRICES))  # e <= G_q + m T_q at every clock
        pairs[:, WORKS - 1], pairs[:, TIME] = 1.0, -cells.t_pair
        upper = sparse.csr_matrix(np.vstack((cuts[:, :PRICES], pairs)))
        rows = sparse.vstack([sparse.hstack([upper, sparse.csr_matrix((upper.shape[0], n + 1))]), most])
        right = np.concatenate((cuts[:, PRICES], cells.g_pair, np.zeros(n)))
        bounds: list[tuple[float, float | None]] = [(0.0, None)] * len(c)
        bounds[TIME] = (0.0, cells.idle_w)
        found = linprog(c, A_ub=rows.tocsr(), b_ub=right, bounds=bounds, method="highs")
        if found.x is None:
            raise ArithmeticError(f"the linear program was not solved: {found.message}")
        return np.asarray(found.x[:PRICES], dtype=np.float64)

    def cut(self, prices: Floats) -> bool:
        """Add the cells that violate (*) most; False: none does."""
        violated = False
        for end in (0, 1):
            ratio = self._ratio(prices, end).reshape(len(self._cells.g_kv), -1)
            worst = ratio.argmin(axis=1)
            for f in np.argsort(ratio.min(axis=1))[:16]:
                if ratio[f, worst[f]] < 1.0 - TOLERANCE:
                    self._add(int(f), *divmod(int(worst[f]), len(self._cells.n_high)), end)
                    violated = True
        return violated

    def _ratio(self, prices: Floats, end: int) -> Floats:
        """Left over right of (*) without pairs: (clocks, K cells, n cells); infinite where impossible."""
        cells, kv = self._cells, self._kv[end][None, :, None]
        per_s = prices[TIME] + prices[RESIDENCE] * cells.k_low[None, :, None]
        cost = cells.g_j + kv * cells.g_kv[:, None, None]
        cost = cost + per_s * (cells.t_s + kv * cells.t_kv[:, None, None])
        tokens = prices[0] * cells.k_high[:, None] + prices[1] * cells.n_high[None, :]
        worth = tokens[None] + prices[2] * kv
        return np.where(cells.possible, cost / np.maximum(worth, 1e-12), np.inf)

    def safe(self, prices: Floats) -> Floats:
        """Scaled down until (*) holds in every cell: (*) is linear in c, so both ends of it suffice."""
        out = prices.copy()
        out[TIME] = min(out[TIME], self._cells.idle_w)
        least = min(1.0, *(float(self._ratio(out, end).min()) for end in (0, 1)))
        pairs = float((self._cells.g_pair + out[TIME] * self._cells.t_pair).min())
        out[: WORKS - 1] *= least
        out[WORKS - 1] = min(out[WORKS - 1], pairs)
        return out

    def value(self, prices: Floats) -> float:
        """Joules that these prices prove."""
        worth = self._work @ prices[:WORKS] - prices[RESIDENCE] * self._residence_s
        away = np.sort(np.maximum(worth, 0.0))[::-1][: self._given_away].sum()
        return float((self._cells.idle_w - prices[TIME]) * self._until_s + worth.sum() - away)
