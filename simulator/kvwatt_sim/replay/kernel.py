"""The compiled plant: builds `csrc/` on first use and lays out its struct over numpy arrays.

Why C: at three quarters of load a step in seven has an arrival, the end of a prompt or of an answer, so
that runs of equal steps are too short for array operations to pay; event by event Python reaches about
0.08 million steps a second, the compiled loop several millions, step by step and without approximation.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from kvwatt.state import EngineShape, Histogram
from kvwatt_sim.cards import Card
from kvwatt_sim.nvml.build import BuildError, cache_dir, compiler
from kvwatt_sim.replay.gaps import BINS, LOWEST_S, SCALE
from kvwatt_sim.replay.meter import E2E_S, LENGTH_TOKENS, STEP_TOKENS, TBT_S, TTFT_S, histogram

CSRC = Path(__file__).parent / "csrc"
# Without contraction the compiled laws round as Python's do.
FLAGS = (
    "-std=c11",
    "-O2",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
NONE = -1
DECODE, COMING = 2, 4  # of the phases
METERS = {
    "ttft": TTFT_S,
    "tbt": TBT_S,
    "itl": TBT_S,
    "e2e": E2E_S,
    "prompts": LENGTH_TOKENS,
    "outputs": LENGTH_TOKENS,
    "iterations": STEP_TOKENS,
}

_Fields: TypeAlias = Sequence[tuple[str, Any]]
_Array: TypeAlias = npt.NDArray[Any]
_COUNTS = "generated computed blocks preempted kv_offset output_offset finish_at"
_LINKS = "next prev p_next p_prev f_next f_prev"
_I, _D = ctypes.c_int64, ctypes.c_double
_SEATS = ctypes.CFUNCTYPE(ctypes.c_int64)
_IS, _DS = ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_double)


def _all(kind: object, names: str) -> _Fields:
    return [(name, kind) for name in names.split()]


class _Meter(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [*_all(_DS, "bounds counts"), ("sum", _D)]


class _List(ctypes.Structure):
    _fields_: ClassVar[_Fields] = _all(_I, "head tail")


class CPlant(ctypes.Structure):
    """kvr_plant of `csrc/plant.h`."""

    _fields_: ClassVar[_Fields] = [
        *_all(_I, "n_requests block_size budget_blocks max_seqs max_batched n_clocks ring_mask tp"),
        ("step_law", _D * 11),
        ("power_law", _D * 8),
        *_all(_D, "cap_w gap_lowest_s gap_scale"),
        ("gap_bins", _I),
        ("clocks", _IS),
        ("arrival_s", _DS),
        *_all(_IS, "prompt total"),
        *_all(_IS, f"phase {_COUNTS} {_LINKS} held"),
        *_all(_DS, "scheduled_s first_s last_s"),
        *_all(_IS, "first_order finish_order by_remainder ring_head ring_tail chunks gaps"),
        *_all(_I, "hold_new admit_blocks"),
        *_all(_I, "following running waiting members decode_steps offset_sum free_blocks in_flight n_chunks"),
        *_all(_List, "batch queue prefilling"),
        *_all(_I, "steps computed_tokens generation_tokens prompt_tokens preemptions started finished"),
        *_all(_I, "planned decode_batch kv_tokens prefill_tokens"),
        *_all(_D, "context_tokens start_s left"),
        *_all(_D, "now_s energy_j power_w switch_at_s"),
        *_all(_I, "clock_mhz pending_mhz actual_mhz prefill_mhz"),
        *_all(_Meter, "ttft tbt itl e2e prompts outputs iterations"),
        ("seats", _SEATS),
    ]


class Kernel:
    """One compiled plant: `c` is the struct, `arrays` what its pointers point to, by the same names."""

    def __init__(
        self,
        card: Card,
        shape: EngineShape,
        arrival_s: npt.NDArray[np.float64],
        prompt: npt.NDArray[np.int64],
        total: npt.NDArray[np.int64],
        longest: int,
        room: int = 0,
    ) -> None:
        """`longest`: most output tokens of a request; `room`: for how many more than are given."""
        self._library = _library()
        self.c = CPlant()
        self.arrays: dict[str, _Array] = {}
        self._rule: Callable[[], int] | None = None
        self._failed: Exception | None = None
        n = len(arrival_s) + room
        for name, values in (("arrival_s", arrival_s), ("prompt", prompt), ("total", total)):
            self._own(name, np.concatenate([values, np.zeros(room, dtype=values.dtype)]))
        self._own("clocks", np.array(card.supported_mhz, dtype=np.int64))
        for name in (*_COUNTS.split(), "held"):
            self._own(name, np.zeros(n, dtype=np.int64))
        self._own("phase", np.full(n, COMING, dtype=np.int64))
        for name in (*_LINKS.split(), "first_order", "finish_order"):
            self._own(name, np.full(n, NONE, dtype=np.int64))
        for name in ("scheduled_s", "first_s", "last_s"):
            self._own(name, np.full(n, -1.0))
        ring = 1 << (longest + 1).bit_length()
        self._own("ring_head", np.full(ring, NONE, dtype=np.int64))
        self._own("ring_tail", np.full(ring, NONE, dtype=np.int64))
        self._own("by_remainder", np.zeros(shape.block_size, dtype=np.int64))
        self._own("chunks", np.zeros(shape.max_num_seqs, dtype=np.int64))
        self._own("gaps", np.zeros(BINS, dtype=np.int64))
        for name, bounds in METERS.items():
            self._meter(name, bounds)
        self._fix(card, shape, len(arrival_s), ring)

    def advance(self, until_s: float) -> None:
        """Run until `until_s`."""
        self._library.kvr_advance(ctypes.byref(self.c), until_s)
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def ask_seats(self, rule: Callable[[], int] | None) -> None:
        """Ask `rule` before each step in which somebody waits how many may run; None: as many as may ever.

        What it raises comes out of the `advance` that asked; the step then keeps its usual seats."""
        self._rule = rule
        self._asked = _SEATS(self._seats) if rule is not None else _SEATS()
        self.c.seats = self._asked

    def _seats(self) -> int:
        if self._rule is not None and self._failed is None:
            try:
                return self._rule()
            except Exception as error:  # an exception must not pass through compiled code
                self._failed = error
        return int(self.c.max_seqs)

    def add(self, arrival_s: float, prompt: int, total: int) -> None:
        """One more request; it must arrive after all others."""
        place = self.c.n_requests
        for name, value in (("arrival_s", arrival_s), ("prompt", prompt), ("total", total)):
            self.arrays[name][place] = value
        self.c.n_requests = place + 1

    def everyone(self) -> _Array:
        """Indices of the requests inside: the batch in its order, then the queue."""
        room = np.empty(self.c.running + self.c.waiting, dtype=np.int64)
        self._library.kvr_everyone(ctypes.byref(self.c), room.ctypes.data_as(_IS))
        return room

    def histogram(self, name: str) -> Histogram:
        """One of METERS."""
        return histogram(METERS[name], self.arrays[f"{name}.counts"], getattr(self.c, name).sum)

    def _fix(self, card: Card, shape: EngineShape, n: int, ring: int) -> None:
        c = self.c
        c.n_requests, c.ring_mask, c.tp = n, ring - 1, card.tp
        c.block_size, c.max_seqs = shape.block_size, shape.max_num_seqs
        c.max_batched, c.n_clocks = shape.max_num_batched_tokens, len(card.supported_mhz)
        c.budget_blocks = c.free_blocks = c.admit_blocks = shape.num_blocks - 1
        c.step_law[:] = astuple(card.step)
        c.power_law[:] = card.power.as_array()
        c.cap_w = card.power_cap_w
        c.gap_lowest_s, c.gap_scale, c.gap_bins = LOWEST_S, SCALE, BINS
        for each in (c.batch, c.queue, c.prefilling):
            each.head = each.tail = NONE
        c.left = 1.0
        c.switch_at_s = float("inf")
        c.clock_mhz = c.actual_mhz = card.boost_mhz

    def _own(self, name: str, values: _Array) -> None:
        """Keep the array alive and point the struct to it."""
        self.arrays[name] = np.ascontiguousarray(values)
        kind = _D if values.dtype == np.float64 else _I
        setattr(self.c, name, self.arrays[name].ctypes.data_as(ctypes.POINTER(kind)))

    def _meter(self, name: str, bounds: tuple[float, ...]) -> None:
        meter = getattr(self.c, name)
        for part, values in (("bounds", np.array(bounds)), ("counts", np.zeros(len(bounds)))):
            self.arrays[f"{name}.{part}"] = values
            setattr(meter, part, values.ctypes.data_as(_DS))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build()))
    library.kvr_advance.argtypes = [ctypes.POINTER(CPlant), ctypes.c_double]
    library.kvr_advance.restype = None
    library.kvr_everyone.argtypes = [ctypes.POINTER(CPlant), _IS]
    library.kvr_everyone.restype = ctypes.c_int64
    library.kvr_plant_bytes.restype = ctypes.c_int64
    if library.kvr_plant_bytes() != ctypes.sizeof(CPlant):
        raise BuildError("kvr_plant differs between csrc/plant.h and kernel.py")
    return library


def build(cache: Path | None = None) -> Path:
    """The shared object of this version of the sources, compiled when the cache has none.

    Any number of processes may call it at once. Raises BuildError.
    """
    digest = hashlib.sha256(" ".join((*FLAGS, platform.machine())).encode())
    sources = sorted(CSRC.glob("*.[ch]"))
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    target = (cache or cache_dir()) / f"replay-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        _compile([str(path) for path in sources if path.suffix == ".c"], target)
    return target


def _compile(sources: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.stem}-", dir=target.parent))
    try:
        output = work / target.name
        command = [*compiler(), *FLAGS, "-o", str(output), *sources, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{command[0]} failed on the replay (status {done.returncode}):\n{done.stderr}")
        output.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
