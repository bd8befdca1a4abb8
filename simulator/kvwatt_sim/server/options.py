"""Command line of the simulated server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvwatt_sim.server.families import Layout

HELP_EPILOG = """\
The line `READY <port>` on standard output says that the server answers. SIGTERM stops it: requests in
flight end, and its GPUs are published as idle.

How long an answer gets: max_tokens, unless the body has {"vllm_xargs": {"output_tokens": N}} or the request
the header `x-output-tokens: N`; then the answer stops by itself after N tokens (never more than max_tokens).
Sampling parameters have no effect. A text prompt counts one token per 4 characters.

Misbehaviour for tests: POST /_sim/metrics with {"mode": MODE, ...}
  ok              the real page
  slow            the real page after "delay_s" (5.0)
  truncated       cut after "fraction" (0.5) of its bytes
  garbage         "size_bytes" (1048576) of random bytes
  empty           200 without a body
  renamed         "renames" ({"vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc"})
  missing         without the series in "names"
  nan             NaN for the series in "names", or for every vllm: series
  set             "values": {"vllm:num_requests_running": -1}
  stale           the page as it is now, for ever
  huge            followed by "size_bytes" (1048576) of comments
  500             HTTP 500
  two_engines     every vllm: series twice, with engine="0" and engine="1"
  missing_labels  vllm: series without engine and model_name
"reset_counters": true, in any mode, starts all counters again at zero, as a restarted engine does.

POST /_sim/sleep with {"sleep": HOW, "wake_up": HOW, "reload_weights": HOW}: the calls of vLLM's sleep mode
are ok, refused (500, nothing done), half (500, half done), lost (500, all done) or hang.

GET /_sim/status: engine steps so far, "dropped_s", the time by which the host failed to keep up, and
"weights_loaded", false while answers would be nonsense (awake after a sleep of level 2, weights not loaded).
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said; None means the card's value."""

    card: str
    state: Path
    gpus: tuple[int, ...]
    host: str = "127.0.0.1"
    port: int = 0
    model_name: str = "sim"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    num_blocks: int | None = None
    block_size: int = 16
    max_model_len: int | None = None
    prefix_hit_ratio: float = 0.0
    time_scale: float = 1.0
    metrics_layout: Layout = Layout.V0_32
    dev_mode: bool = True
    start_s: float = 0.0
    sleep_s: float = 0.0
    wake_s: float = 0.0
    reload_s: float = 0.0


def parse_args(arguments: Sequence[str] | None = None) -> Options:
    """Exits with status 2 and the reason when an argument is not acceptable."""
    parser = argparse.ArgumentParser(
        prog="python -m kvwatt_sim.server",
        description="A simulated vLLM server on simulated GPUs, in real time.",
        epilog=HELP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_plant(parser)
    _add_engine(parser)
    _add_face(parser)
    _add_sleep(parser)
    return Options(**vars(parser.parse_args(arguments)))


def _add_plant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--card", required=True, help="hardware card, for as many GPUs as --gpu names")
    parser.add_argument("--state", required=True, type=Path, help="state file of the simulated GPUs")
    parser.add_argument(
        "--gpu",
        dest="gpus",
        type=_gpus,
        default=(0,),
        metavar="I[,J...]",
        help="GPU indices; more than one: tensor parallel",
    )
    parser.add_argument(
        "--time-scale",
        type=_positive,
        default=1.0,
        help="simulated step seconds per real second; power stays as it is, so energy per token scales",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-name", default="sim")
    parser.add_argument("--max-num-seqs", type=_count, default=256)
    parser.add_argument("--max-num-batched-tokens", type=_count, default=2048)
    parser.add_argument("--num-blocks", type=_count, default=None, help="KV blocks (default: from the card)")
    parser.add_argument("--block-size", type=_count, default=16, help="tokens per KV block")
    parser.add_argument(
        "--max-model-len",
        type=_count,
        default=None,
        help="longest prompt plus answer (default: the card's, or what the KV cache holds)",
    )
    parser.add_argument(
        "--prefix-hit-ratio", type=_ratio, default=0.0, help="share of each prompt found in the prefix cache"
    )


def _add_face(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument(
        "--metrics-layout",
        type=Layout,
        choices=list(Layout),
        default=Layout.V0_32,
        metavar="|".join(Layout),
        help="vLLM version whose metrics page is served",
    )


def _add_sleep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-dev-mode", dest="dev_mode", action="store_false", help="without /sleep, /wake_up and the like"
    )
    for name, what in (
        ("start", "loading the model: the port is taken and refuses connections"),
        ("sleep", "falling asleep"),
        ("wake", "waking up"),
        ("reload", "loading the weights again after a sleep of level 2"),
    ):
        parser.add_argument(f"--{name}-s", type=_seconds, default=0.0, help=f"seconds of {what}")


def _gpus(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(f"{text!r}: distinct GPU indices such as 0 or 0,1 are needed")
    return tuple(int(part) for part in parts)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number above 0 is needed")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a finite number above 0 is needed")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a finite number of seconds, 0 or more, is needed")
    return value


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 to below 1 is needed")
    return value
