"""Who did how much since the page before, from what the tap tells of single requests. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvwatt.attribution import Work
from kvwattd.tap_requests import Known, Roll
from kvwattd.vllm_plugin.wire import Finished

GRAIN_S = 1e-5  # arrivals told twice are equal but for rounding


@dataclass(frozen=True, slots=True)
class Told:
    """What the tap knows, where it is relied on: who is inside, and who ended since the page before."""

    roll: Roll
    finished: Sequence[Finished]


@dataclass(frozen=True, slots=True)
class Ended:
    """Somebody who is no longer inside; `told` None: nobody said how it ended."""

    key: Known
    told: Finished | None


class Followed:
    """Call `works` once per page, then `ended`."""

    def __init__(self) -> None:
        self._seen: dict[Known, float] = {}  # output tokens that were worked off in earlier pages
        self._ended: list[Ended] = []

    def __len__(self) -> int:
        return len(self._seen)

    def clear(self) -> None:
        """Another engine run, or the tap is not relied on: follow whoever is inside afresh."""
        self._seen.clear()
        self._ended.clear()

    def works(self, told: Told, chunk_tokens: float, computed_share: float) -> list[Work]:
        """One per request that advanced; `computed_share`: of prompt tokens, the others were cached."""
        roll, found = told.roll, []
        inside = {known: roll.tokens(known) for known in (*roll.active, *roll.parked)}
        rest = list(told.finished)
        self._ended = _match([known for known in self._seen if known not in inside], rest)
        for end in self._ended:
            before = self._seen.pop(end.key)
            if end.told is not None:
                found.append(_work(end.key, before, float(end.told.output_tokens), 0.0, chunk_tokens))
        found += self._passed(rest, chunk_tokens)
        for known, tokens in inside.items():
            new = known not in self._seen
            # Of those who were there before the first record only what comes from now on is worked off here.
            before = self._seen.get(known, 0.0 if known.counted else tokens)
            prompt = _prompt(known) * computed_share if new and known.counted else 0.0
            sure = max(1.0 - known.gone, 0.0)
            found.append(_work(known, before, before + sure * (tokens - before), sure * prompt, chunk_tokens))
            self._seen[known] = max(tokens, before)
        return [work for work in found if work.steps > 0.0]

    def ended(self) -> list[Ended]:
        """Who left since the call of `works` before, once."""
        ended, self._ended = self._ended, []
        return ended

    def _passed(self, finished: Sequence[Finished], chunk_tokens: float) -> list[Work]:
        """Requests that came and went between two pages: told at their end alone."""
        found = []
        for item in finished:
            key = Known(item.arrival_s, 0.0, 0.0, None, 0.0)
            self._ended.append(Ended(key, item))
            prompt = max(item.prompt_tokens - (item.cached_tokens or 0), 0)
            work = _work(key, 0.0, float(item.output_tokens), float(prompt), chunk_tokens)
            found.append(work)
        return found


def _match(gone: list[Known], finished: list[Finished]) -> list[Ended]:
    """How each of them ended; what is matched is taken out of `finished`."""
    by_arrival = {round(f.arrival_s / GRAIN_S): f for f in finished if f.arrival_s is not None}
    found: list[Ended] = []
    for known in gone:
        place = round((known.arrival_wall_s or 0.0) / GRAIN_S)
        near = next((p for p in (place, place - 1, place + 1) if p in by_arrival), None)
        item = by_arrival.pop(near) if near is not None else None
        if item is not None:
            finished.remove(item)
        found.append(Ended(known, item))
    return found


def _prompt(known: Known) -> float:
    return known.group.each if known.group is not None else 0.0


def _work(key: Known, before: float, tokens: float, prefill: float, chunk_tokens: float) -> Work:
    """From `before` to `tokens` output tokens; the first comes with the prompt's last chunk."""
    decoded = max(tokens - max(before, 1.0), 0.0)
    context = _prompt(key) + max(before, 1.0) + decoded / 2
    chunks = max(prefill / chunk_tokens, 1.0) if prefill > 0.0 else 0.0
    return Work(key, decoded + chunks, prefill, decoded, decoded * context)
