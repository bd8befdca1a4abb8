"""What goes into a recording, taken from what the daemon observes of one instance. Pure but for the sink."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvwatt.state import EngineShape, GpuSample, Slo
from kvwattd.recording.lines import VERSION, GpuLine, Line, RequestLine, RunLine
from kvwattd.telemetry.gpu import GpuInfo
from kvwattd.vllm_plugin.wire import Finished

GPU_EVERY_S = 10.0
CLOCKS_APART_S = 3600.0  # a server's arrival time further off is not believed
ENDED = (0, 1, 4)  # stop, length, repetition: an aborted or failed request promised nothing


class Taking:
    """Lines of one instance, given to `put`."""

    def __init__(self, instance: str, put: Callable[[Line], None]) -> None:
        self._instance = instance
        self._put = put
        self._begun: tuple[object, ...] | None = None
        self._first_j: dict[str, float] = {}
        self._next_gpu_s = 0.0

    def on_shape(
        self, shape: EngineShape | None, model: str, gpus: tuple[GpuInfo, ...], slo: Slo, wall_s: float
    ) -> None:
        """Writes a run line when what serves is first known and when it changes."""
        key = (shape, model, gpus, slo)
        if shape is None or not gpus or key == self._begun:
            return
        self._begun, self._first_j, self._next_gpu_s = key, {}, 0.0
        self._put(
            RunLine(
                version=VERSION,
                at_s=wall_s,
                instance=self._instance,
                model=model,
                gpu=gpus[0].name,
                gpus=len(gpus),
                default_mhz=min(gpu.default_mhz for gpu in gpus),
                max_num_seqs=shape.max_num_seqs,
                max_num_batched_tokens=shape.max_num_batched_tokens,
                num_blocks=shape.num_blocks,
                block_size=shape.block_size,
                promised_s=_limits_s(slo),
            )
        )

    def on_finished(self, finished: Iterable[Finished], wall_s: float) -> None:
        """Requests that the tap told of; without the server's arrival time that is counted back from now."""
        for item in finished:
            if self._begun is None or item.reason not in ENDED or item.output_tokens < 1:
                continue
            several = item.output_tokens > 1
            counted_s = wall_s - item.e2e_s
            told_s = counted_s if item.arrival_s is None else item.arrival_s
            self._put(
                RequestLine(
                    instance=self._instance,
                    arrival_s=told_s if abs(told_s - counted_s) < CLOCKS_APART_S else counted_s,
                    prompt_tokens=item.prompt_tokens,
                    output_tokens=item.output_tokens,
                    ttft_s=item.queued_s + item.prefill_s,
                    tbt_s=item.decode_s / (item.output_tokens - 1) if several else None,
                    e2e_s=item.e2e_s,
                    max_tokens=item.max_tokens,
                )
            )

    def on_gpu(self, samples: dict[str, GpuSample], wall_s: float) -> None:
        """Every GPU_EVERY_S the sum of the instance's GPUs."""
        if self._begun is None or not samples or wall_s < self._next_gpu_s:
            return
        self._next_gpu_s = wall_s + GPU_EVERY_S
        for uuid, sample in samples.items():
            self._first_j.setdefault(uuid, sample.energy_j)
        self._put(
            GpuLine(
                instance=self._instance,
                at_s=wall_s,
                clock_mhz=min(sample.clock_mhz for sample in samples.values()),
                power_w=sum(sample.power_w for sample in samples.values()),
                energy_j=sum(s.energy_j - self._first_j[uuid] for uuid, s in samples.items()),
            )
        )


def _limits_s(slo: Slo) -> dict[str, float]:
    targets = {"ttft": slo.ttft, "tbt": slo.tbt, "e2e": slo.e2e, "itl": slo.itl}
    return {name: target.limit_s for name, target in targets.items() if target is not None}
