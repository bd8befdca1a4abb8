"""The recording's format: a file per UTC day, `kvwatt-YYYY-MM-DD.jsonl`, one JSON object a line.

`kind` says what a line is:

    run        a daemon began to record an instance: what serves there, on which GPUs
    request    a request that finished: when it came, its lengths, what it waited for; no text, no caller
    gpu        an instance's GPUs at a moment: clock, power, and the energy they used since the run began

Times are seconds since 1970 (UTC). Unknown keys are ignored, so that later versions can be read; a version
that changes what a key means gets a new number.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

VERSION = 1
FILE_NAME = re.compile(r"kvwatt-\d{4}-\d{2}-\d{2}\.jsonl")


class RunLine(msgspec.Struct, frozen=True, tag_field="kind", tag="run"):
    """`default_mhz`: the clock under load when nothing is locked. `promised_s`: limits of ttft, tbt, e2e and
    itl, of those that are promised."""

    version: int
    at_s: float
    instance: str
    model: str
    gpu: str
    gpus: int
    default_mhz: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    promised_s: dict[str, float] = {}


class RequestLine(msgspec.Struct, frozen=True, tag_field="kind", tag="request"):
    """`tbt_s`: mean time between tokens; None for an answer of one token."""

    instance: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tbt_s: float | None
    e2e_s: float
    max_tokens: int | None = None


class GpuLine(msgspec.Struct, frozen=True, tag_field="kind", tag="gpu"):
    """`energy_j`: of all GPUs of the instance since its latest run line."""

    instance: str
    at_s: float
    clock_mhz: int
    power_w: float
    energy_j: float


Line = RunLine | RequestLine | GpuLine
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(RunLine | RequestLine | GpuLine)
_encoder = msgspec.json.Encoder()


def encode(line: Line) -> bytes:
    """One line, its end included."""
    return _encoder.encode(line) + b"\n"


def decode(text: str | bytes) -> Line:
    """Raises ValueError, saying what is wrong."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


def time_of(line: Line) -> float:
    """When the line was true, seconds since 1970: for a request, when it had finished."""
    return line.arrival_s + line.e2e_s if isinstance(line, RequestLine) else line.at_s


def file_name(at_s: float) -> str:
    """The file of the UTC day that `at_s` lies in."""
    return f"kvwatt-{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d}.jsonl"
