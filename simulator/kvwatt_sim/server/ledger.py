"""What is remembered of each request in flight, and what its progress means for client and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvwatt_sim.engine import EventKind, RequestRecord, TokenEvent
from kvwatt_sim.server.page import Finished, MetricsPage
from kvwatt_sim.server.ticket import Delivery, Ticket


@dataclass(slots=True)
class Group:
    """The completions of one prompt: vLLM reports `n` and the longest answer when all have ended."""

    completions: int
    open: int
    longest_tokens: int = 0


@dataclass(slots=True)
class Entry:
    """One completion in flight: choice `index` of the API request `api_id`. Times are monotonic."""

    api_id: str
    index: int
    ticket: Ticket
    group: Group
    arrival_s: float
    last_token_s: float = 0.0


class Ledger:
    """Entries by engine request id, fed with the engine's events."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._by_api: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def api_requests(self) -> int:
        """API requests that have not been answered to the end."""
        return len(self._by_api)

    def ids(self) -> list[str]:
        """Engine request ids in flight, in the order of their arrival."""
        return list(self._entries)

    def ids_of(self, api_id: str) -> list[str]:
        """Engine request ids of one API request that have not ended."""
        return list(self._by_api.get(api_id, ()))

    def open(self, request_id: str, entry: Entry) -> None:
        """A completion was asked for."""
        self._entries[request_id] = entry
        self._by_api.setdefault(entry.api_id, {})[request_id] = None

    def take(self, events: Iterable[TokenEvent], page: MetricsPage) -> None:
        """Deliver the tokens of one step and record them.

        A token is held until the event after it, because a request's last one carries the reason."""
        gaps_s: list[float] = []
        held: dict[str, Entry] = {}
        for event in events:
            entry = self._entries[event.request_id]
            if event.kind is EventKind.FINISHED:
                assert event.record is not None  # noqa: S101  # by the engine's contract
                del held[event.request_id]
                self._finish(self._end(event.request_id, event.record, 1), event.record, page)
                continue
            if event.kind is EventKind.FIRST:
                page.first_token(max(event.t_s - entry.arrival_s, 0.0))
            else:
                gaps_s.append(event.t_s - entry.last_token_s)
            entry.last_token_s = event.t_s
            held[event.request_id] = entry
        for entry in held.values():
            entry.ticket.put(Delivery(entry.index, None))
        page.inter_token(gaps_s)

    def aborted(self, request_id: str, record: RequestRecord, page: MetricsPage, by_client: bool) -> None:
        """The request ended without a further token. vLLM forgets what a client gave up: not a finish."""
        entry = self._end(request_id, record, 0)
        if not by_client:
            self._finish(entry, record, page)

    def _end(self, request_id: str, record: RequestRecord, tokens: int) -> Entry:
        entry = self._entries.pop(request_id)
        siblings = self._by_api[entry.api_id]
        del siblings[request_id]
        if not siblings:
            del self._by_api[entry.api_id]
        entry.ticket.put(Delivery(entry.index, record.reason.value, tokens))
        return entry

    def _finish(self, entry: Entry, record: RequestRecord, page: MetricsPage) -> None:
        page.finished(_finished(entry, record))
        group = entry.group
        group.open -= 1
        group.longest_tokens = max(group.longest_tokens, record.output_tokens)
        if group.open == 0:
            page.answered(group.completions, group.longest_tokens)


def _finished(entry: Entry, record: RequestRecord) -> Finished:
    """Phases that were not reached took no time; a request that never ran was queued to its end."""
    end_s = record.finished_s
    scheduled_s = end_s if record.first_scheduled_s is None else record.first_scheduled_s
    first_s = scheduled_s if record.first_token_s is None else record.first_token_s
    last_s = first_s if record.first_token_s is None else entry.last_token_s
    request = record.request
    return Finished(
        reason=record.reason.value,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=record.cached_tokens,
        generation_tokens=record.output_tokens,
        max_tokens=request.max_tokens or request.output_tokens,
        preemptions=record.num_preemptions,
        e2e_s=max(end_s - entry.arrival_s, 0.0),
        queue_s=max(scheduled_s - entry.arrival_s, 0.0),
        prefill_s=max(first_s - scheduled_s, 0.0),
        decode_s=last_s - first_s,
    )
