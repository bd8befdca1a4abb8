"""Writes one completion to the client: JSON at the end, or server-sent events as the tokens come.

This is the hot path (one write per token and request), so the event of an ordinary token is built once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvwatt_sim.server.protocol import CompletionRequest, Job
from kvwatt_sim.server.ticket import Delivery, Ticket

WORD = " token"


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer needs to know about its request."""

    request_id: str
    model_name: str
    request: CompletionRequest
    jobs: list[Job]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many completions it gets."""
        return sum(job.prompt_tokens for job in self.jobs[:: self.request.n])

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
        }

    def event(self, choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
        """One server-sent event, with the fields that vLLM sends."""
        body: dict[str, object] = {
            "id": self.request_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model_name,
            "choices": choices,
        }
        if usage is not None:
            body["usage"] = usage
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


class CompletionAnswer(Response):
    """An ASGI response fed by a ticket. `on_gone` is called when the client hangs up before the end."""

    def __init__(
        self, answered: Answered, ticket: Ticket, on_gone: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        self.status_code = HTTPStatus.OK
        self.background = None
        self._answered = answered
        self._ticket = ticket
        self._on_gone = on_gone
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until the last token, the client's leaving or the server's stop."""
        answering = asyncio.create_task(self._stream(send) if self._ticket.stream else self._whole(send))
        watching = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            if not answering.done():
                self._on_gone()
            for task in (answering, watching):
                task.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)
            self._on_end()

    async def _whole(self, send: Send) -> None:
        answered, ticket = self._answered, self._ticket
        counts = [0] * len(answered.jobs)
        reasons: list[str | None] = [None] * len(answered.jobs)
        while ticket.open_choices or None in reasons:
            for delivery in await ticket.take():
                counts[delivery.choice] += delivery.tokens
                reasons[delivery.choice] = delivery.finish_reason
        choices = [
            _choice(index, WORD * count, reason)
            for index, (count, reason) in enumerate(zip(counts, reasons, strict=True))
        ]
        body = json.dumps(_body(answered, choices, sum(counts)), separators=(",", ":")).encode()
        await _start(send, b"application/json", len(body))
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        answered, ticket = self._answered, self._ticket
        options = answered.request.stream_options
        ordinary = [answered.event([_chunk(i, WORD, None)]) for i in range(len(answered.jobs))]
        running_usage = options is not None and options.continuous_usage_stats
        await _start(send, b"text/event-stream; charset=utf-8")
        sent, open_choices = 0, len(answered.jobs)
        while open_choices:
            parts: list[bytes] = []
            for delivery in await ticket.take():
                sent += delivery.tokens
                open_choices -= delivery.finish_reason is not None
                if delivery.finish_reason is None and not running_usage:
                    parts.append(ordinary[delivery.choice])
                else:
                    usage = answered.usage(sent) if running_usage else None
                    parts.append(answered.event([_last_chunk(delivery)], usage))
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
        end = b"data: [DONE]\n\n"
        if options is not None and options.include_usage:
            end = answered.event([], answered.usage(sent)) + end
        await send({"type": "http.response.body", "body": end})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, content_type: bytes, length: int | None = None) -> None:
    headers = [(b"content-type", content_type)]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})


def _body(answered: Answered, choices: list[dict[str, object]], tokens: int) -> dict[str, object]:
    return {
        "id": answered.request_id,
        "object": "text_completion",
        "created": answered.created,
        "model": answered.model_name,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": answered.usage(tokens) | {"prompt_tokens_details": None},
        "kv_transfer_params": None,
    }


def _choice(index: int, text: str, reason: str | None) -> dict[str, object]:
    return _chunk(index, text, reason) | {"prompt_logprobs": None}


def _chunk(index: int, text: str, reason: str | None) -> dict[str, object]:
    return {
        "index": index,
        "text": text,
        "logprobs": None,
        "finish_reason": reason,
        "stop_reason": None,
        "prompt_token_ids": None,
        "token_ids": None,
    }


def _last_chunk(delivery: Delivery) -> dict[str, object]:
    return _chunk(delivery.choice, WORD * delivery.tokens, delivery.finish_reason)
