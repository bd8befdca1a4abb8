"""Sound inputs of every kind that the parsers take: what mutation starts from."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np

from kvwatt import artifact
from kvwatt.compiled import CompiledModel
from kvwatt.profiles import table_of
from kvwatt.samples import Sample, sample_values
from kvwatt.state import EngineShape
from kvwatt.training import Origin, train
from kvwatt_sim import cards
from kvwatt_sim.engine import Counters
from kvwatt_sim.server.families import Layout
from kvwatt_sim.server.page import Finished, Gauges, MetricsPage, PageShape
from kvwatt_sim.virtual_profile import virtual_profile
from kvwattd.guard import protocol
from kvwattd.guard.protocol import ClockState, GuardGpu, GuardHello, GuardStatus
from kvwattd.recording import lines
from kvwattd.telemetry import layouts
from kvwattd.vllm_plugin import wire

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
UUID = "GPU-00000000-0000-0000-0000-000000000001"
OTHER = "GPU-00000000-0000-0000-0000-000000000002"
SHAPE = EngineShape(block_size=32, num_blocks=1000)
_BUCKET = re.compile(rb'le="([^"]*)"')
_KEPT_BOUNDS = frozenset({b"1.0", b"10.0", b"100.0", b"0.1", b"5.0", b"+Inf"})


def sim_page(layout: Layout = Layout.V0_32) -> bytes:
    """A page of the simulated server after a request."""
    page = MetricsPage(PageShape("tiny", SHAPE, 2048, layout))
    page.scheduler(Gauges(3, 1, 0.25))
    page.progress(Counters(prompt_tokens=120, generation_tokens=40), Counters())
    page.first_token(0.4)
    page.inter_token((0.02, 0.03, 0.2))
    page.finished(Finished("stop", 120, 0, 40, 64, 0, 2.0, 0.1, 0.4, 1.5))
    return page.render()


def small(page: bytes) -> bytes:
    """The lines that the parser wants, with few buckets: so that many inputs cost little."""
    names = {name.encode() for name in layouts.SCALARS | layouts.HISTOGRAMS}
    kept = []
    for line in page.splitlines(keepends=True):
        name = re.sub(rb"_(bucket|sum|count)$", b"", line.split(b"{")[0].removeprefix(b"vllm:"))
        bound = _BUCKET.search(line)
        if not {name, line.split(b"{")[0].removeprefix(b"vllm:")} & names:
            continue
        if bound is None or bound[1] in _KEPT_BOUNDS:
            kept.append(line)
    return b"".join(kept)


def pages() -> list[bytes]:
    """Whole pages: the simulated server's, and real vLLM's where they are beside the repository."""
    real = sorted((SHARED / "vllm_metrics").glob("v*.txt"))
    return [sim_page(), sim_page(Layout.V0_27), *(path.read_bytes() for path in real)]


def records() -> list[bytes]:
    """Datagrams of the tap."""
    first = wire.Record(
        wire.VERSION,
        1,
        10.0,
        77,
        1,
        "",
        "tiny",
        0,
        3,
        1,
        0.25,
        0.02,
        3,
        0.06,
        3,
        100,
        None,
        0,
        3,
        0,
        0,
        [0.4],
    )
    ended = wire.Finished(0, 120, 40, 64, 20, 2.0, 0.1, 0.4, 1.5)
    second = msgspec.structs.replace(first, sequence=2, chunk_tokens=256, instance="a", finished=[ended] * 3)
    silent = msgspec.structs.replace(first, running=None, waiting=None, kv_usage=None, step_s=None)
    return [msgspec.msgpack.encode(item) for item in (first, second, silent)]


def guard_requests() -> list[bytes]:
    """What the daemon says to the guard."""
    group = {"gpus": [UUID, OTHER]}
    messages: list[protocol.Message] = [
        {"id": 1, "op": "hello", "v": protocol.VERSION, "role": "control"},
        {"id": 2, "op": "hello", "v": protocol.VERSION, "role": "status"},
        {"id": 3, "op": "set", **group, "floor_mhz": 900, "target_mhz": 1200},
        {"id": 4, "op": "reset", **group},
        {"id": 5, "op": "renew"},
        {"id": 6, "op": "status"},
    ]
    return [protocol.encode(message) for message in messages]


def guard_answers() -> list[bytes]:
    """What the guard answers."""
    held = GuardGpu(UUID, ClockState.SET, 900, 1200, None)
    failed = GuardGpu(OTHER, ClockState.RESETTING, None, None, "lost")
    hello = GuardHello(protocol.VERSION, 2.0, (UUID, OTHER), 300, 2400)
    status = GuardStatus(protocol.VERSION, 12.5, 2.0, 1.5, 77, 0, 0, (held, failed))
    bodies = (
        protocol.hello_fields(hello),
        protocol.status_fields(status),
    )
    return [protocol.encode({"id": 1, "ok": True, **body}) for body in bodies]


CONFIG = b"""
[daemon]
mode = "active"
tick_s = 0.1
state_dir = "/tmp/kvwatt"
[api]
port = 0
[guard]
socket = "/run/kvwatt/guard.sock"
lease_s = 2.0
[slo.tbt]
limit_s = 0.2
quantile = 0.95
[policy]
floor_mhz = 900
ceiling_mhz = 2400
[[instance]]
name = "a"
url = "http://127.0.0.1:8000"
gpus = ["0"]
poll_s = 0.25
[[instance]]
name = "b"
url = "http://127.0.0.1:8001"
gpus = ["GPU-00000000-0000-0000-0000-000000000001", "2"]
tp = 2
[instance.slo.ttft]
limit_s = 1.5
"""

GUARD_CONFIG = f"""
socket = "/run/kvwatt/guard.sock"
socket_mode = "0660"
state_file = "/var/lib/kvwatt-guard/state.json"
gpus = ["{UUID}", "{OTHER}"]
min_mhz = 300
max_mhz = 2400
lease_s = 2.0
nvml_deadline_s = 0.35
""".encode()


def examples(folder: str, pattern: str) -> list[bytes]:
    """Files of the repository that document a format."""
    return [path.read_bytes() for path in sorted((REPOSITORY / folder).glob(pattern))]


TOKENS = b"""
[[token]]
name = "operator"
scope = "control"
sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
[[token]]
name = "grafana"
scope = "read"
sha256 = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"
"""

AZURE = b"""TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
2023-11-16 18:16:21.1234567,91,16
"""


MOONCAKE = b"""{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 7234, "output_length": 794}
"""

SETTINGS = (
    b'{"version": 1, "mode": {"by": "operator", "unix_s": 1.7e9, "mode": "active"},'
    b' "slos": {"a": {"by": "operator", "unix_s": 1.7e9, "slo": {"tbt": {"limit_s": 0.2, "quantile": 0.9}}}}}'
)


def recording() -> bytes:
    """Two requests and two readings of one instance."""
    at_s = 1.7e9
    sizes = (1, 2520, 256, 2048, 1000, 16)
    run = lines.RunLine(lines.VERSION, at_s, "a", "m", "NVIDIA L20", *sizes, {"tbt": 0.2})
    requests = [lines.RequestLine("a", at_s + n, 100, 40, 0.4, 0.03, 2.0, 64) for n in range(2)]
    readings = [lines.GpuLine("a", at_s + n, 1200, 150.5, 150.5 * n) for n in range(2)]
    return b"".join(map(lines.encode, [run, *requests, *readings]))


def model_folder(folder: Path) -> Path:
    """A small trained artifact with its profile and its compiled table."""
    card = cards.load("l20", 1)
    origin = Origin(card.gpu_name, "0.32.0", "sim", "2026-01-01T00:00:00+00:00")
    table = table_of(virtual_profile(card, seed=0))
    kept = table.select(np.arange(len(table)) % 8 == 0)
    artifact.save(train(kept, origin, folds=2, by_clock=False), folder, kept)
    return folder


def compiled_table(model: Path) -> tuple[tuple[int, ...], CompiledModel, bytes]:
    """Clocks, the table made of the artifact at them, and its cached form."""
    clocks = (900, 1500, 2100)
    compiled = artifact.load_compiled(model, clocks, SHAPE)
    (cached,) = model.glob("compiled-*")
    return clocks, compiled, cached.read_bytes()


def copy_of(model: Path, folder: Path) -> Path:
    """The artifact in a folder of its own, to be damaged."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    return folder


def samples_file() -> bytes:
    """Operating points as a daemon keeps them over a restart."""
    samples = [Sample(n, 1200.0, 8.0 + n, 6000.0, 256.0, 0.1, 0.03, math.nan) for n in range(1, 4)]
    return json.dumps({"served": "tiny", "samples": [sample_values(s) for s in samples]}).encode()
