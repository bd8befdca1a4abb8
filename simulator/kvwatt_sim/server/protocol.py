"""The part of OpenAI's completions API that the simulated server speaks, with vLLM's defaults and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

TokenIds = list[Annotated[int, Field(ge=0)]]
Positive = Annotated[int, Field(ge=1)]
CHARACTERS_PER_TOKEN = 4  # of a text prompt; rounded up


class StreamOptions(BaseModel):
    """What usage a stream reports."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class VllmXargs(BaseModel):
    """Extension of the simulator: how long the answer is going to be, whatever `max_tokens` allows."""

    model_config = ConfigDict(extra="ignore")

    output_tokens: Positive | None = None


class CompletionRequest(BaseModel):
    """Body of `POST /v1/completions`. Sampling parameters are accepted and have no effect."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    prompt: TokenIds | list[TokenIds] | str | list[str]
    max_tokens: Positive | None = 16
    min_tokens: Annotated[int, Field(ge=0)] = 0
    n: Positive = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    vllm_xargs: VllmXargs | None = None


class ApiError(Exception):
    """A request that vLLM refuses with an HTTP status and an OpenAI error object."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True, slots=True)
class Job:
    """One completion to produce. `output_tokens` is how long it really gets."""

    prompt_tokens: int
    max_tokens: int
    output_tokens: int

    @property
    def finish_reason(self) -> str:
        """`length` when the limit ends the answer, `stop` when the answer ends by itself."""
        return "length" if self.output_tokens >= self.max_tokens else "stop"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the served model accepts."""

    model_name: str
    max_model_len: int


def parse(body: bytes) -> CompletionRequest:
    """Raises ApiError 400 naming the field, the value's fault and what is accepted."""
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"][:2])
        raise ApiError(400, "BadRequestError", f"{field}: {first['msg']}", field or None) from error


def jobs(request: CompletionRequest, limits: Limits, output_tokens: int | None) -> list[Job]:
    """One job per prompt and completion (`n`), in the order of the answer's choices.

    `output_tokens` (from the header) counts when the body does not tell. Raises ApiError.
    """
    if request.model is not None and request.model != limits.model_name:
        message = f"The model `{request.model}` does not exist. Served: `{limits.model_name}`."
        raise ApiError(404, "NotFoundError", message, "model")
    hint = request.vllm_xargs.output_tokens if request.vllm_xargs else None
    if hint is None:
        hint = output_tokens
    return [
        _job(length, request, limits, hint)
        for length in prompt_lengths(request.prompt)
        for _ in range(request.n)
    ]


def prompt_lengths(prompt: TokenIds | list[TokenIds] | str | list[str]) -> list[int]:
    """Tokens of each prompt: counted for token ids, a quarter of the characters for text."""
    if isinstance(prompt, str):
        return [_text_tokens(prompt)]
    if not prompt:
        raise ApiError(400, "BadRequestError", "prompt: at least one token or text is needed", "prompt")
    if isinstance(prompt[0], int):
        return [len(prompt)]
    return [_text_tokens(item) if isinstance(item, str) else len(item) for item in prompt if _countable(item)]


def _countable(item: object) -> bool:
    if isinstance(item, (str, list)) and item:
        return True
    raise ApiError(400, "BadRequestError", "prompt: an empty prompt is not accepted", "prompt")


def _text_tokens(text: str) -> int:
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def _job(prompt_tokens: int, request: CompletionRequest, limits: Limits, hint: int | None) -> Job:
    room = limits.max_model_len - prompt_tokens
    if room < 1:
        message = (
            f"This model's maximum context length is {limits.max_model_len} tokens. However, your prompt "
            f"contains {prompt_tokens} input tokens, which exceeds this limit even without any output tokens."
        )
        raise ApiError(400, "BadRequestError", message, "input_tokens")
    limit = room if request.max_tokens is None else request.max_tokens
    if limit > room:
        message = f"max_tokens = {limit} is more than the {room} tokens left after the prompt."
        raise ApiError(400, "BadRequestError", message, "max_tokens")
    if request.min_tokens > limit:
        message = f"min_tokens = {request.min_tokens} is more than max_tokens = {limit}."
        raise ApiError(400, "BadRequestError", message, "min_tokens")
    wanted = limit if hint is None else max(hint, request.min_tokens)
    return Job(prompt_tokens, limit, min(wanted, limit))
