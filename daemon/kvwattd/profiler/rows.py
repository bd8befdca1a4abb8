"""From measured windows to rows of the profile table; windows that mean something else are refused. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvwatt.profiles import ProfileRow
from kvwattd.profiler.windows import Window, nominal_clock_mhz

MIN_ITERATIONS = 4
MIN_PROMPTS = 3
_LEAST_SHARE = 0.2  # of the window: below it the power of steps with prompts is lost in that of the others
_LEAST_MIXED = 0.9  # a step with a prompt is not faster than one without
_WHOLE = 0.02
_UNEVEN = 0.05  # a steady batch differs by less: something held it up for a while
_HELD_UP = 1.25  # beyond this a busy host, not the GPU, set the pace


class ForeignTrafficError(Exception):
    """Somebody else's requests run on the server: measuring beside them needs --live."""


class WindowUnusable(Exception):  # noqa: N818 - a property of the window, not a mistake
    """The window does not show what was meant to be measured; the message says why."""


def decode_row(window: Window, clock_mhz: int, batch: int, tp: int, *, live: bool = False) -> ProfileRow:
    """A window of steady decoding. Raises WindowUnusable, and ForeignTrafficError unless `live`."""
    before, after = window.before, window.after
    if window.iterations < MIN_ITERATIONS or window.itl_s is None:
        raise WindowUnusable(f"only {window.iterations:g} steps in {window.duration_s:.1f} s")
    if after.preemptions_total > before.preemptions_total:
        raise WindowUnusable("the KV cache was full: requests were preempted")
    if not live:
        _check_own(window, batch)
        if window.unevenness > _UNEVEN:
            raise WindowUnusable(f"the halves of the window differ by {100 * window.unevenness:.0f} %")
    prefill_tokens = window.prompt_tokens / window.iterations
    mixed = prefill_tokens > 0
    return ProfileRow(
        clock_mhz=nominal_clock_mhz(clock_mhz, window.clock_mhz),
        decode_batch=(before.running + after.running) / 2,
        kv_tokens=_kv_tokens(window),
        prefill_tokens=prefill_tokens,
        step_time_s=window.duration_s / window.iterations if mixed else window.itl_s,
        power_w=window.power_w,
        tp=tp,
        kind="mixed" if mixed else "decode",
    )


def _check_own(window: Window, batch: int) -> None:
    running = (window.before.running, window.after.running)
    if max(running) + max(window.before.waiting, window.after.waiting) > batch:
        raise ForeignTrafficError(f"{max(running)} requests are running, {batch} are ours")
    if min(running) < batch:
        raise WindowUnusable(f"{min(running)} of {batch} requests were running")
    if window.prompt_tokens > 0:
        raise WindowUnusable("a prompt was computed in the window")


def mixed_row(window: Window, decode: ProfileRow, prompt_tokens: float, prompts: float) -> ProfileRow:
    """The steps that took a prompt, from a window in which the others were like the row `decode`.

    Every decoding sequence gets a token in every step, so the steps are counted by tokens, and their time
    is the summed time between tokens: neither suffers from a window that cuts a step. What plain decode
    steps took is taken off. Raises WindowUnusable.
    """
    batch = decode.decode_batch
    steps = window.itl_count / batch
    plain = steps - prompts
    if prompts < MIN_PROMPTS or plain < 0:
        raise WindowUnusable(f"{prompts:.3g} prompts in {steps:.3g} steps")
    total_s = window.itl_sum_s / batch
    seconds = (total_s - plain * decode.step_time_s) / prompts
    if seconds < _LEAST_MIXED * decode.step_time_s:
        raise WindowUnusable(f"steps with a prompt took {seconds:.4f} s, others {decode.step_time_s:.4f} s")
    share = seconds * prompts / total_s
    power_w = (window.power_w - (1 - share) * decode.power_w) / share
    believable = share >= _LEAST_SHARE and 0.5 <= power_w / window.power_w <= 2.0
    return ProfileRow(
        clock_mhz=decode.clock_mhz,
        decode_batch=batch,
        kv_tokens=_kv_tokens(window),
        prefill_tokens=prompt_tokens,
        step_time_s=seconds,
        power_w=power_w if believable else math.nan,
        tp=decode.tp,
        kind="mixed",
    )


def prompts_in(window: Window, prompt_tokens: int, batch: int) -> float:
    """Prompts of `prompt_tokens` that were computed beside `batch` sequences of our own.

    Raises WindowUnusable, and ForeignTrafficError when there is more than that.
    """
    running = (window.before.running, window.after.running)
    if max(running) + max(window.before.waiting, window.after.waiting) > batch + 2:
        raise ForeignTrafficError(f"{max(running)} requests are running, {batch + 1} are ours")
    if min(running) < batch:
        raise WindowUnusable(f"{min(running)} of {batch} requests were running")
    if window.after.preemptions_total > window.before.preemptions_total:
        raise WindowUnusable("the KV cache was full: requests were preempted")
    prompts = window.prompt_tokens / prompt_tokens
    if abs(prompts - round(prompts)) > _WHOLE * max(prompts, 1.0):
        raise WindowUnusable(f"{window.prompt_tokens:g} prompt tokens are no multiple of {prompt_tokens}")
    return round(prompts)


def check_plausible(step_time_s: float, worst_s: float) -> None:
    """A step that slowed down by more than the clock did was held up by something else.

    `worst_s` 0 means that nothing is known yet. Raises WindowUnusable.
    """
    if worst_s > 0 and step_time_s > _HELD_UP * worst_s:
        raise WindowUnusable(f"steps took {step_time_s:.3f} s, at most {worst_s:.3f} s were to be expected")


def _kv_tokens(window: Window) -> float:
    """Mean over the window; a sequence's last block is on average half full."""
    capacity = max(window.after.num_blocks - 1, 1) * window.after.block_size
    used = capacity * (window.before.kv_usage + window.after.kv_usage) / 2
    running = (window.before.running + window.after.running) / 2
    return max(used - running * window.after.block_size / 2, running)


def prefill_row(
    prompt_tokens: int,
    times_s: Sequence[float],
    elapsed: tuple[float, float],
    idle_w: float,
    clock_mhz: int,
    actual_mhz: float,
    tp: int,
    overhead_s: float = 0.0,
) -> ProfileRow:
    """Single prompts of `times_s` within `elapsed` (seconds, joules); pauses between them drew `idle_w`.

    A busy host can only add to a prompt's time: the shortest counts, less the `overhead_s` of a request.
    """
    times_s = [max(seconds - overhead_s, _LEAST_SHARE * seconds) for seconds in times_s]
    seconds, joules = elapsed
    busy_s = min(sum(times_s), seconds)
    pauses_j = (seconds - busy_s) * idle_w if math.isfinite(idle_w) else math.nan
    power_w = (joules - pauses_j) / busy_s if busy_s > 0 and math.isfinite(pauses_j) else joules / seconds
    return ProfileRow(
        clock_mhz=nominal_clock_mhz(clock_mhz, actual_mhz),
        decode_batch=0.0,
        kv_tokens=0.0,
        prefill_tokens=float(prompt_tokens),
        step_time_s=min(times_s),
        power_w=power_w if power_w > 0 else math.nan,
        tp=tp,
        kind="prefill",
    )


def idle_row(window: Window, clock_mhz: int, tp: int) -> ProfileRow:
    """A window in which nothing ran."""
    return ProfileRow(clock_mhz, 0.0, 0.0, 0.0, math.nan, window.power_w, tp, "idle")
