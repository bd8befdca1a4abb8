"""throttLL'eM's admission: hold a request that would break TBT, E2E or KV even at the top clock.

From arXiv 2408.05235: a new request is admitted virtually; if the KV cache, TBT or the deadline of anyone
inside fails at the top clock, it waits. What it would do to its own deadline holds nobody: waiting makes that
no better. Steps are priced with the batch as it would be, and KV at the middle of the way.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvwattd.vllm_plugin.told import Promises


def breaks(
    promises: Promises,
    held: Sequence[int],
    left: Sequence[int],
    ages_s: Sequence[float],
    new: tuple[int, int],
) -> str | None:
    """What one more request would break: "tbt", "e2e" or None.

    `held`, `left`: KV tokens and tokens to come of those inside, `ages_s`: since they came; shapes (n,).
    `new`: tokens to compute at once and tokens to come.
    """
    step, (tokens, _) = promises.step, new
    batch = len(held) + 1
    kv = sum(held) + tokens
    step_s = step.base_s + step.request_s * batch + step.kv_token_s * kv
    prompt_s = step.prompt_token_s * tokens
    if promises.tbt_s is not None and step_s > promises.tbt_s:
        return "tbt"
    limit_s = promises.e2e_s
    if limit_s is None:
        return None
    for age_s, rounds in zip(ages_s, left, strict=True):
        grown_s = step.kv_token_s * batch * rounds / 2
        alone_s = (step_s - step.request_s - step.kv_token_s * tokens + grown_s) * rounds
        if age_s + alone_s <= limit_s < age_s + (step_s + grown_s) * rounds + prompt_s:
            return "e2e"
    return None
