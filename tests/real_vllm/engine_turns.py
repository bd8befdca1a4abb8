"""One real vLLM engine in one process, without a server, that computes a few steps when it is told to.

    VLLM_PYTHON engine_turns.py MODEL_FOLDER [SCHEDULER_CLASS] [BLOCKS]

Runs inside vLLM's interpreter and speaks JSON, a line each way: {"in_flight", "asked": [[prompt, tokens],
...]} begins a round and answers nothing; a number of steps makes so many of them, or fewer where the round
ends, and answers with what `Done` holds so far. A closed loop: whoever ends is followed at once by the next.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # nothing spins and no message is waited for
OPTIONS = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 1024,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "enforce_eager": True,
    "seed": 0,
}


@dataclass
class Done:
    """Of a round so far. `busy_s`, `cpu_s`: wall and CPU time inside turns; `texts`: tokens by number."""

    over: bool = False
    steps: int = 0
    tokens: int = 0
    preemptions: int = 0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    faults: int = 0
    texts: dict[int, list[int]] = field(default_factory=dict)


class Round:
    """Requests of one round, by number."""

    def __init__(self, engine: Any, number: int, in_flight: int, asked: list[tuple[list[int], int]]) -> None:
        self._engine, self._number, self._in_flight = engine, number, in_flight
        self._coming = deque(enumerate(asked))
        self._inside = 0
        self._preempted: dict[str, int] = {}
        self.done = Done()

    def turn(self, steps: int) -> Done:
        """So many steps, or to the end."""
        started_s, cpu_s = time.monotonic(), time.process_time()
        for _ in range(steps):
            self._fill()
            if not self._inside:
                break
            self._step()
        done = self.done
        done.busy_s += time.monotonic() - started_s
        done.cpu_s += time.process_time() - cpu_s
        done.over = not self._inside and not self._coming
        done.preemptions = sum(self._preempted.values())
        done.faults = getattr(_scheduler(self._engine), "kvwatt_faults", 0)
        return done

    def _fill(self) -> None:
        from vllm import SamplingParams

        while self._coming and self._inside < self._in_flight:
            number, (prompt, tokens) = self._coming.popleft()
            how = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
            self._engine.add_request(f"{self._number}-{number}", {"prompt_token_ids": prompt}, how)
            self._inside += 1

    def _step(self) -> None:
        requests = list(_scheduler(self._engine).requests.values())
        for answer in self._engine.step():
            if answer.finished:
                tokens = list(answer.outputs[0].token_ids)
                self.done.texts[int(answer.request_id.split("-")[1])] = tokens
                self.done.tokens += len(tokens)
                self._inside -= 1
        self._preempted.update((r.request_id, r.num_preemptions) for r in requests if r.num_preemptions)
        self.done.steps += 1


def _scheduler(engine: Any) -> Any:
    return engine.engine_core.engine_core.scheduler


def engine_of(model: str, scheduler: str, blocks: int) -> Any:
    """An engine in this process."""
    from vllm import EngineArgs, LLMEngine

    more = {"scheduler_cls": scheduler} if scheduler else {}
    args = EngineArgs(model=model, num_gpu_blocks_override=blocks, **OPTIONS, **more)
    return LLMEngine.from_engine_args(args, enable_multiprocessing=False)


def main(model: str, scheduler: str = "", blocks: str = "128") -> None:
    engine, number, at = engine_of(model, scheduler, int(blocks)), 0, None
    for line in sys.stdin:
        wish = json.loads(line)
        if isinstance(wish, dict):
            number += 1
            at = Round(engine, number, wish["in_flight"], wish["asked"])
            continue
        assert at is not None, "no round was begun"
        done = asdict(at.turn(wish))
        if not done["over"]:
            del done["texts"]
        sys.stdout.write(f"@{json.dumps(done)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
