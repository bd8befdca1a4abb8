"""What the tap tells of a virtual plant between two polls, in one record.

The record has the requests that started and finished, exactly as the tap's records of every step have
together; where the engine stands now is told by `VirtualPlant.state`.
"""

from __future__ import annotations

from kvwatt_sim.replay.plant import MAX_TOKENS, VirtualPlant
from kvwattd.vllm_plugin.wire import VERSION, Finished, Record, Started

WALL_S = 1_700_000_000.0  # the server's wall clock when virtual time begins
STOP, LENGTH = 0, 1


class Told:
    """Call `record` before every page."""

    def __init__(self) -> None:
        self._sequence = self._started = self._finished = self._tokens = 0

    def record(self, plant: VirtualPlant) -> Record:
        """Everything since the last call."""
        prompts, waits = plant.first_tokens(self._started)
        finished = self._ended(plant)
        tokens, self._tokens = plant.generated_tokens - self._tokens, plant.generated_tokens
        self._started, self._finished = plant.started, plant.finished
        self._sequence += 1
        wall_s, steps = WALL_S + plant.now_s, plant.decode_steps
        return Record(
            version=VERSION,
            sequence=self._sequence,
            sent_s=plant.now_s,
            sender=1,
            servers=1,
            instance="virtual",
            model=plant.card.name,
            engine=0,
            running=plant.running,
            waiting=plant.waiting,
            kv_usage=plant.kv_usage,
            step_s=None,
            decodes=0,
            itl_sum_s=0.0,
            generation_tokens=tokens,
            prompt_tokens=prompts,
            chunk_tokens=None,
            preempted=0,
            generation_tokens_total=plant.generated_tokens,
            finished_total=plant.finished,
            dropped_total=0,
            first_tokens_s=waits,
            finished=finished,
            wall_s=wall_s,
            decode_steps_total=steps,
            started=[Started(wall_s, steps, prompts, waits)] if waits else [],
        )

    def _ended(self, plant: VirtualPlant) -> list[Finished]:
        served = plant.served(self._finished)
        columns = (served.prompt_tokens, served.output_tokens, served.arrival_s)
        times = (served.scheduled_s, served.first_s, served.last_s)
        rows = zip(*(column.tolist() for column in (*columns, *times)), strict=True)
        return [
            Finished(
                reason=LENGTH if output == MAX_TOKENS else STOP,
                prompt_tokens=prompt,
                output_tokens=output,
                max_tokens=MAX_TOKENS,
                cached_tokens=0,
                e2e_s=last - arrival,
                queued_s=scheduled - arrival,
                prefill_s=first - scheduled,
                decode_s=last - first,
                arrival_s=WALL_S + arrival,
            )
            for prompt, output, arrival, scheduled, first, last in rows
        ]
