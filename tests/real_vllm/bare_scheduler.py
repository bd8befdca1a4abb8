"""vLLM's own scheduler, driven without a model: counts that no machine's noise touches.

    VLLM_PYTHON bare_scheduler.py MODEL_FOLDER < plan.json > counts.json

Runs inside vLLM's interpreter. Each step's time is computed, not measured: a base, a share per decoding
request and one per prompt token, so that requests arrive and answers take time as they would on a server.
The plan is a list of runs; see `Run`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


STOP, GO = 7, 9  # tokens
IDLE_STEPS = 3  # in a row with nothing scheduled while somebody waits


@dataclass
class Run:
    """`requests`: (arrival_s, prompt_tokens, output_tokens, max_tokens, priority, hint or None) each.

    `in_flight` > 0: a closed loop, arrivals are ignored. `fault_every`: every so many steps the plugin's own
    code raises an exception. `told`: what the daemon would tell, held to be fresh throughout.
    """

    scheduler: str | None
    requests: list[tuple[float, int, int, int, int, int | None]]
    blocks: int = 128
    block_size: int = 32
    seats: int = 64
    in_flight: int = 0
    policy: str = "fcfs"
    base_s: float = 0.0
    decode_s: float = 0.0
    prompt_token_s: float = 0.0
    fault_every: int = 0
    ahead: int = 0  # steps scheduled before a step's tokens are known: asynchronous scheduling has 1
    chunk_tokens: int = 2048
    told: dict[str, Any] | None = None


@dataclass
class Counts:
    """What came of one run. Times are by the step times of the plan, but for `own_s`, CPU time."""

    steps: int = 0
    tokens: int = 0
    preemptions: int = 0
    computed_tokens: int = 0  # prompts, recomputed ones included
    batch_steps: int = 0  # sum of the batch over steps
    held_block_steps: int = 0  # sum of blocks in use over steps
    time_s: float = 0.0
    own_s: float = 0.0  # CPU time inside schedule()
    finished: dict[int, float] = field(default_factory=dict)  # by request: latency
    order: list[int] = field(default_factory=list)  # as they finished
    told: dict[str, Any] = field(default_factory=dict)  # the plugin's own counts


def scheduler_of(model: str, run: Run) -> Any:
    """A scheduler as EngineCore makes one. The constructors moved between versions."""
    import torch
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = VllmConfig(
        model_config=ModelConfig(model=model, dtype="bfloat16", seed=0, max_model_len=8192),
        scheduler_config=SchedulerConfig(
            max_num_seqs=run.seats,
            max_num_batched_tokens=run.chunk_tokens,
            max_model_len=8192,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy=run.policy,
            async_scheduling=run.ahead > 0,
        ),
        cache_config=CacheConfig(block_size=run.block_size, enable_prefix_caching=False),
    )
    config.cache_config.num_gpu_blocks = run.blocks
    spec = FullAttentionSpec(block_size=run.block_size, num_kv_heads=1, head_size=32, dtype=torch.bfloat16)
    cache = KVCacheConfig(
        num_blocks=run.blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    made: Any = Scheduler
    if run.scheduler is not None:
        module, name = run.scheduler.rsplit(".", 1)
        made = getattr(importlib.import_module(module), name)
    return made(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=run.block_size,
        log_stats=True,
    )


def requests_of(run: Run) -> list[Any]:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    made = []
    for number, (arrival_s, prompt, output, limit, priority, hint) in enumerate(run.requests):
        extra = {} if hint is None else {"extra_args": {"output_tokens": hint}}
        params = SamplingParams(max_tokens=limit, ignore_eos=True, temperature=0.0, **extra)
        request = Request(
            request_id=str(number),
            prompt_token_ids=[1] * prompt,
            sampling_params=params,
            pooling_params=None,
            arrival_time=arrival_s,
            priority=priority,
        )
        params._all_stop_token_ids = {STOP}
        params.stop_token_ids = [STOP]
        request.kvwatt_length = output
        made.append(request)
    return made


def play(model: str, run: Run) -> Counts:
    """One run to its end."""
    scheduler, counts = scheduler_of(model, run), Counts()
    coming = requests_of(run)
    if not run.in_flight:
        coming.sort(key=lambda r: r.arrival_time)
    coming.reverse()
    started: dict[str, float] = {}
    inside: dict[str, Any] = {}
    pending: deque[tuple[Any, list[tuple[str, bool]]]] = deque()
    scheduler.kvwatt_clock = scheduler.kvwatt_wall = lambda: counts.time_s
    idle = 0
    _inject(scheduler, run.fault_every)
    _tell(scheduler, run.told)
    while coming or inside:
        while coming and (
            len(inside) < run.in_flight if run.in_flight else coming[-1].arrival_time <= counts.time_s
        ):
            request = coming.pop()
            started[request.request_id] = counts.time_s if run.in_flight else request.arrival_time
            inside[request.request_id] = request
            scheduler.add_request(request)
        if not inside:
            counts.time_s = coming[-1].arrival_time
            continue
        step, sampling = _schedule(scheduler, run, inside, counts)
        # By priority vLLM may preempt the very first of the batch and then schedules nothing in that step.
        idle = idle + 1 if not sampling and not pending else 0
        if idle > IDLE_STEPS:
            raise RuntimeError(f"nothing is scheduled while {len(inside)} wait")
        pending.append((step, sampling))
        if len(pending) > run.ahead or not sampling:
            _update(scheduler, *pending.popleft(), (inside, started), counts)
    if run.scheduler is not None and run.scheduler.startswith("kvwatt"):
        record = scheduler.kvwatt_record()
        counts.told = {name: getattr(record, name) for name in record.__struct_fields__}
    return counts


def _schedule(scheduler: Any, run: Run, inside: dict[str, Any], counts: Counts) -> tuple[Any, list[Any]]:
    """One step, and of each in it whether it samples a token."""
    before_s = time.process_time()
    step = scheduler.schedule()
    counts.own_s += time.process_time() - before_s
    scheduled = step.num_scheduled_tokens
    sampling = []
    for name in scheduled:
        request = inside[name]
        placeholders = max(request.num_output_placeholders - 1, 0) if run.ahead else 0
        sampling.append((name, request.num_computed_tokens >= request.num_tokens + placeholders))
    if scheduled:
        decodes = sum(number == 1 for number in scheduled.values())
        prompts = sum(scheduled.values()) - decodes
        counts.time_s += run.base_s + run.decode_s * decodes + run.prompt_token_s * prompts
        counts.steps += 1
        counts.batch_steps += len(scheduled)
        counts.computed_tokens += prompts
        pool = scheduler.kv_cache_manager.block_pool
        counts.held_block_steps += run.blocks - 1 - pool.get_num_free_blocks()
    return step, sampling


def _update(
    scheduler: Any,
    step: Any,
    sampling: list[tuple[str, bool]],
    who: tuple[dict[str, Any], dict[str, float]],
    counts: Counts,
) -> None:
    """The step's tokens: STOP is the last of a request."""
    from vllm.v1.outputs import ModelRunnerOutput

    inside, started = who
    ids, sampled = [name for name, _ in sampling], []
    for name, samples in sampling:
        request = inside.get(name)
        last = request is not None and request.num_output_tokens + 1 >= request.kvwatt_length
        sampled.append(([STOP] if last else [GO]) if samples else [])
    before = {name: inside[name].num_output_tokens for name in ids if name in inside}
    output = ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={name: i for i, name in enumerate(ids)},
        sampled_token_ids=sampled,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )
    scheduler.update_from_output(step, output)
    for name, made in before.items():
        request = inside[name]
        counts.tokens += request.num_output_tokens - made
        if request.is_finished():
            counts.finished[int(name)] = counts.time_s - started[name]
            counts.order.append(int(name))
            counts.preemptions += inside.pop(name).num_preemptions


def _inject(scheduler: Any, every: int) -> None:
    """Make the plugin's own look at the queue fail every so many steps."""
    if not every:
        return
    whole, calls = scheduler._kvwatt_look, iter(range(1 << 60))

    def failing(*args: object) -> object:
        if next(calls) % every == 0:
            raise ZeroDivisionError("injected")
        return whole(*args)

    scheduler._kvwatt_look = failing


def _tell(scheduler: Any, told: dict[str, Any] | None) -> None:
    if told is not None:
        import msgspec

        from kvwattd.vllm_plugin.told import Told

        message = msgspec.convert(told, Told)
        scheduler.kvwatt_reader.told = lambda now_s: message


def main(arguments: Sequence[str]) -> None:
    logging.disable(logging.CRITICAL)
    plan = json.load(sys.stdin)
    counts = [asdict(play(arguments[0], Run(**run))) for run in plan]
    sys.stdout.write("\n@" + json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1:])
