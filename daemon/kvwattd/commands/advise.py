"""`kvwatt advise`: how large the KV pool, the batch and a prompt's chunk should be, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands.refusal import refuse

if TYPE_CHECKING:
    from kvwatt.kv_advice import Advice
    from kvwatt.kv_budget import KvLoad, Reuse
    from kvwatt.throughput import StepModel
    from kvwattd.recording.lines import RequestLine

ROUNDS = 30  # of the fixed point between requests in flight and how long each stays
PEAK_BIN_S = 60.0
PEAK_QUANTILE = 0.99
GB = 1e9


def advise(
    model: Annotated[Path, typer.Option(help="Directory of the model that `kvwatt train` wrote.")],
    recording: Annotated[
        Path | None, typer.Option(help="Recorded day (`kvwatt-YYYY-MM-DD.jsonl`) instead of the next four.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.0, help="Requests per second, mean.")] = 0.0,
    peak: Annotated[
        float, typer.Option(min=0.0, help="Requests per second at peak; 0: twice the mean.")
    ] = 0.0,
    prompt: Annotated[float, typer.Option(min=0.0, help="Prompt tokens, mean.")] = 0.0,
    output: Annotated[float, typer.Option(min=0.0, help="Output tokens, mean.")] = 0.0,
    largest: Annotated[
        float, typer.Option(min=0.0, help="Most tokens of one request; 0: three means.")
    ] = 0.0,
    clock: Annotated[float, typer.Option(min=0.0, help="SM clock, MHz; 0: the highest profiled.")] = 0.0,
    tbt: Annotated[float, typer.Option(min=0.0, help="Promised time between tokens, s; 0: none.")] = 0.0,
    shared: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of prompt tokens that were sent before.")
    ] = 0.0,
    returns_after: Annotated[
        float, typer.Option(min=0.0, help="Median seconds until they are sent again.")
    ] = 60.0,
    memory: Annotated[float, typer.Option(min=0.0, help="Memory of a GPU, GB; 0: no advice on it.")] = 0.0,
    weights: Annotated[float, typer.Option(min=0.0, help="Weights and activations on a GPU, GB.")] = 0.0,
    kv_bytes: Annotated[float, typer.Option(min=0.0, help="Bytes of KV cache per token on a GPU.")] = 0.0,
    servers: Annotated[int, typer.Option(min=1, help="Servers that share the load.")] = 1,
    away: Annotated[
        float, typer.Option(min=0.0, help="Watts of a server's GPUs while it is asleep or stopped.")
    ] = 0.0,
    ttft: Annotated[float, typer.Option(min=0.0, help="Promised time to first token, s; 0: none.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print options and reasons as JSON.")] = False,
) -> None:
    """Say --max-num-seqs, --max-num-batched-tokens and --gpu-memory-utilization for a workload.

    Example: kvwatt advise --model /var/lib/kvwatt/model --rate 2 --prompt 1000 --output 200 --tbt 0.1
    """
    from kvwatt import artifact
    from kvwatt.kv_advice import Memory, advise, instances

    try:
        step = artifact.load(model)
        clock_mhz = clock or step.manifest.clock_range_mhz[1]
        if recording is not None:
            load = shared_by(load_of(read_requests(recording)), 1.0 / servers)
        else:
            rates = (rate / servers, (peak or 2.0 * rate) / servers)
            load = given(step, clock_mhz, rates, (prompt, output), largest)
        sizes = Memory(memory * GB, weights * GB, kv_bytes) if _memory(memory, weights, kv_bytes) else None
        reuse = _reuse(shared, returns_after)
        found = advise(load, reuse, step, clock_mhz, tbt or None, sizes)
        if servers > 1:
            whole, limits_s = shared_by(load, servers), (ttft or None, tbt or None)
            found.append(instances(whole, reuse, step, clock_mhz, limits_s, sizes, servers, away))
    except (artifact.ArtifactError, ValueError, OSError) as error:
        refuse("advise", error, "give a trained model and a recording, or --rate, --prompt and --output")
    typer.echo(_as_json(found, load) if as_json else text_of(found, load, clock_mhz, servers))


def _as_json(found: Sequence[Advice], load: KvLoad) -> str:
    import json
    from dataclasses import asdict

    return json.dumps({"load": asdict(load), "advice": [asdict(one) for one in found]}, indent=2)


def _memory(memory: float, weights: float, kv_bytes: float) -> bool:
    """Whether it is given. Raises ValueError where only a part is."""
    given = [memory > 0.0, weights > 0.0, kv_bytes > 0.0]
    if any(given) and not all(given):
        raise ValueError("--memory, --weights and --kv-bytes belong together: all above 0, or none")
    return all(given)


def _reuse(shared: float, median_s: float) -> Reuse:
    """Times until a prefix comes back as exponential ones with this median."""
    from math import log

    from kvwatt.kv_budget import Reuse

    levels = [place / 64 for place in range(64)]
    after = [-median_s / log(2.0) * log(1.0 - level) for level in levels]
    return Reuse(shared, (*after, 2.0 * after[-1]))


def read_requests(path: Path) -> list[RequestLine]:
    """The requests of a recorded day. Raises ValueError naming the line, OSError."""
    from kvwattd.recording.lines import RequestLine, decode

    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = decode(text)
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
        if isinstance(line, RequestLine):
            found.append(line)
    return found


def load_of(requests: Sequence[RequestLine]) -> KvLoad:
    """The load of recorded requests. Raises ValueError for fewer than two."""
    from collections import Counter
    from statistics import fmean, quantiles

    from kvwatt.kv_budget import KvLoad

    arrivals = sorted(request.arrival_s for request in requests)
    if len(arrivals) < 2 or arrivals[-1] <= arrivals[0]:
        raise ValueError("the recording has fewer than two requests at different times")
    span_s = arrivals[-1] - arrivals[0]
    per_bin = Counter(int((at - arrivals[0]) // PEAK_BIN_S) for at in arrivals)
    counts = [per_bin[number] for number in range(int(span_s // PEAK_BIN_S) + 1)]
    busiest = quantiles(counts, n=100, method="inclusive")[98] if len(counts) > 1 else counts[0]
    rate = (len(arrivals) - 1) / span_s
    return KvLoad(
        rate_per_s=rate,
        rate_upper_per_s=max(busiest / min(PEAK_BIN_S, span_s), rate),
        prompt_tokens=fmean(request.prompt_tokens for request in requests),
        output_tokens=fmean(request.output_tokens for request in requests),
        residence_s=fmean(request.e2e_s for request in requests),
        context_tokens=fmean(r.prompt_tokens + r.output_tokens / 2 for r in requests),
        largest_tokens=max(r.prompt_tokens + r.output_tokens for r in requests),
    )


def shared_by(load: KvLoad, factor: float) -> KvLoad:
    """The same requests at so many times the rate."""
    from dataclasses import replace

    rates = (load.rate_per_s * factor, load.rate_upper_per_s * factor)
    return replace(load, rate_per_s=rates[0], rate_upper_per_s=rates[1])


def given(
    step: StepModel,
    clock_mhz: float,
    rates: tuple[float, float],
    tokens: tuple[float, float],
    largest_tokens: float,
) -> KvLoad:
    """The load of a workload in numbers; how long a request stays follows from the model (Little).

    Raises ValueError where the peak is more than the engine can serve at this clock."""
    from kvwatt.kv_budget import KvLoad

    (rate, peak), (prompt, output) = rates, tokens
    if not (rate > 0.0 and prompt > 0.0 and output > 0.0):
        raise ValueError(f"--rate {rate:g} --prompt {prompt:g} --output {output:g}: all above 0 are needed")
    context, inside = prompt + output / 2, 1.0
    for _ in range(ROUNDS):
        decode_s = float(step.step_time_s(clock_mhz, inside, inside * context, 0.0))
        mixed_s = float(step.step_time_s(clock_mhz, inside, inside * context, prompt))
        prefilling = peak * max(mixed_s - decode_s, 0.0)
        if prefilling >= 1.0 or inside > 1e5:
            raise ValueError(
                f"{peak:g} requests a second are more than this engine serves at {clock_mhz:g} MHz"
            )
        stays_s = output * decode_s / (1.0 - prefilling) + mixed_s
        inside = 0.5 * inside + 0.5 * max(peak * stays_s, 1.0)
    return KvLoad(
        rate, max(peak, rate), prompt, output, stays_s, context, largest_tokens or 3.0 * (prompt + output)
    )


def text_of(found: Sequence[Advice], load: KvLoad, clock_mhz: float, servers: int = 1) -> str:
    """Options and reasons, one under the other."""
    rates = f"{load.rate_per_s:.2f} requests/s (peak {load.rate_upper_per_s:.2f})"
    tokens = f"{load.prompt_tokens:.0f} tokens in, {load.output_tokens:.0f} out"
    which = f"for each of {servers} servers with" if servers > 1 else "for"
    head = f"{which} {rates}, {tokens}, {load.residence_s:.1f} s each, at {clock_mhz:.0f} MHz:"
    rows = [f"  {item.option} {item.value}\n      {item.reason}" for item in found]
    return "\n".join([head, *rows])
