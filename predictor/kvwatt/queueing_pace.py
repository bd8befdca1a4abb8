"""Mean time between the tokens of one request: what a request meets of other requests' prompts.

A request that decodes for l steps has the TBT  X_l / l,  X_l = T(Q_1) + ... + T(Q_l)  along the chain of
`queueing_batch`, begun where its own first token left the queue: with what arrived while it waited. The
first two moments follow by backward recursion over the chain's transition matrix P,

    m_l = T + P m_(l-1),   s_l = T^2 + 2 T P m_(l-1) + P s_(l-1),

and what exceeds bare decode steps is taken to be gamma distributed. Short answers vary most: one burst of
prompts is all they see. Beyond LONGEST steps mean and variance go on as they grew last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from kvwatt.queueing_batch import Prompts, Solved

FloatArray = npt.NDArray[np.float64]

LONGEST = 48
LEVELS: FloatArray = np.array([0.05, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.985, 0.995])
SHARES: FloatArray = np.diff(np.append(0.0, (np.append(LEVELS[1:], 1.0) + LEVELS) / 2.0))


def request_tbt(
    solved: Solved, after_s: FloatArray, outputs: Prompts, own_s: float
) -> tuple[FloatArray, FloatArray]:
    """Seconds between tokens per length of `outputs` and level of SHARES, with the probabilities: (l, s).

    `after_s`: equally likely times that passed between arrival and first token. `own_s`: what a step takes
    longer for the request's own sake (an arrival meets the mean batch, and is one more)."""
    steps = np.maximum(outputs.tokens - 1.0, 1.0)
    mean, variance = _moments(solved, solved.after(after_s), steps)
    bare = float(solved.queue.step_s[0]) + own_s
    excess = np.maximum(mean + own_s - bare, 1e-9)
    shape = np.clip(excess**2 / np.maximum(variance, 1e-18), 1e-2, 1e4)
    seconds = bare + gammaincinv(shape[:, None], LEVELS) * (excess / shape)[:, None]
    return seconds, outputs.share[:, None] * SHARES


def _moments(solved: Solved, begun: FloatArray, steps: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and variance of X_l / l for each l of `steps`."""
    step_s = solved.step_of_state
    pair = np.zeros((len(step_s), 2))
    first, second = np.empty(LONGEST), np.empty(LONGEST)
    for step in range(LONGEST):
        ahead = solved.forward(pair)
        pair = np.stack([step_s + ahead[:, 0], step_s**2 + 2.0 * step_s * ahead[:, 0] + ahead[:, 1]], axis=1)
        first[step], second[step] = (begun[:, None] * pair).sum(axis=0)
    variance = np.maximum(second - first**2, 0.0)
    count = np.arange(1.0, LONGEST + 1.0)
    beyond = np.maximum(steps - LONGEST, 0.0)
    mean = np.interp(steps, count, first) + beyond * (first[-1] - first[-2])
    spread = np.interp(steps, count, variance) + beyond * (variance[-1] - variance[-2])
    return mean / steps, spread / steps**2
