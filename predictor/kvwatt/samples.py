"""Operating points seen while serving: what a model is refitted to and compared on.

The newest samples are kept as they came; older ones by stratum of clock and batch, so that a clock or a
batch that is rare is not pushed out by those that are common. Both stores are bounded.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields

RECENT = 512
PER_STRATUM = 16
STRATA = 256
_CLOCK_STEP = math.log(1.05)  # clocks closer than 5 % are one stratum
_BATCH_STEP = math.log(2.0) / 2.0  # half octaves


@dataclass(frozen=True, slots=True)
class Sample:
    """A few busy seconds at one clock. `number` counts up: the higher, the newer."""

    number: int
    clock_mhz: float  # as read back, not as asked for
    decode_batch: float
    kv_tokens: float
    chunk_tokens: float  # prompts are taken to be computed so many tokens at a time
    chunks_per_step: float
    itl_s: float  # inter-token latency, mean over tokens
    power_w: float  # sum over the instance's GPUs; NaN where unknown

    def __post_init__(self) -> None:
        positive = (self.clock_mhz, self.decode_batch, self.chunk_tokens, self.itl_s)
        known = (*positive, self.kv_tokens, self.chunks_per_step)
        if not all(math.isfinite(value) and value >= 0 for value in known) or min(positive) <= 0:
            raise ValueError(f"a sample must be finite, with clock, batch, chunk and latency > 0, got {self}")
        if math.isinf(self.power_w) or self.power_w <= 0:
            raise ValueError(f"power_w must be positive or NaN, got {self.power_w}")

    @property
    def stratum(self) -> tuple[int, int]:
        """Clock within 5 %, batch within half an octave."""
        clock = round(math.log(self.clock_mhz) / _CLOCK_STEP)
        return clock, round(math.log(max(self.decode_batch, 1.0)) / _BATCH_STEP)


SAMPLE_FIELDS = tuple(item.name for item in fields(Sample))


def sample_from(values: Sequence[float | None]) -> Sample:
    """A sample from numbers in the order of `SAMPLE_FIELDS`, None for unknown power. Raises ValueError."""
    number, *rest = values
    if number is None or not math.isfinite(number) or len(rest) != len(SAMPLE_FIELDS) - 1:
        raise ValueError(f"a sample has the numbers {', '.join(SAMPLE_FIELDS)}, got {values}")
    return Sample(int(number), *(math.nan if value is None else float(value) for value in rest))


def sample_values(sample: Sample) -> list[float | None]:
    """The reverse of `sample_from`."""
    values = [getattr(sample, name) for name in SAMPLE_FIELDS]
    return [None if math.isnan(value) else value for value in values]


class SampleRing:
    """Bounded memory of samples: at most `recent` + `strata` x `per_stratum` of them."""

    def __init__(
        self, recent: int = RECENT, strata: int = STRATA, per_stratum: int = PER_STRATUM, first: int = 0
    ) -> None:
        self._recent: deque[Sample] = deque()
        self._limit = recent
        self._max_strata = strata
        self._per_stratum = per_stratum
        self._older: dict[tuple[int, int], deque[Sample]] = {}
        self.last = first  # number of the newest sample ever added

    def __len__(self) -> int:
        return len(self._recent) + sum(len(kept) for kept in self._older.values())

    def add(self, sample: Sample) -> None:
        """Keep `sample`, whose number must be above all before it."""
        if sample.number <= self.last:
            raise ValueError(f"sample {sample.number} is not newer than {self.last}")
        self.last = sample.number
        self._recent.append(sample)
        if len(self._recent) > self._limit:
            self._keep(self._recent.popleft())

    def _keep(self, sample: Sample) -> None:
        kept = self._older.get(sample.stratum)
        if kept is None:
            if len(self._older) >= self._max_strata:
                del self._older[min(self._older, key=lambda stratum: self._older[stratum][-1].number)]
            kept = self._older[sample.stratum] = deque(maxlen=self._per_stratum)
        kept.append(sample)

    def samples(self) -> list[Sample]:
        """Everything kept, oldest first."""
        kept = [sample for stratum in self._older.values() for sample in stratum]
        return sorted([*kept, *self._recent], key=lambda sample: sample.number)
