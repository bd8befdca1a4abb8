"""Published measurements as windows of ten seconds: what the energy model reaches on real GPUs.

Tables hold steady operating points, so a window is ten seconds of one. Most factors are in none of them
and stay unknown. FLOPs and bytes are estimated from shapes and parameter counts, as vLLM does of itself.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvwatt.energy_factors import Windows, window_row, windows_of
from kvwatt.lattice import Floats
from kvwatt.profiles import ProfileTable, parse_csv, table_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
L20 = DATA / "profiles" / "l20_qwen2.5-7b"
L20_FILES = ("decode_7b_tp1.csv", "prefill_7b_tp1.csv", "static_7b_tp1.csv")
WINDOW_S = 10.0
KERNEL_ROWS = 3000
HEAD = 128  # of the attention kernels
Labels = npt.NDArray[np.str_]
Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """`groups`: by name of a split, what each row belongs to; one of them is left out at a time. `profile`:
    the same rows for a step model, where the table has step times."""

    name: str
    windows: Windows
    energy_j: Floats
    groups: Mapping[str, Labels]
    profile: ProfileTable | None = None


def tables() -> Iterator[Measured]:
    """Every table that is at hand."""
    for make in (l20, a100, a100_other_model, caps, *(_kernels(kind) for kind in KERNELS), *_served()):
        yield make()


def _measured(
    name: str, rows: list[Row], factors: Callable[[Row], dict[str, float]], power: str, groups: dict[str, str]
) -> Measured:
    windows = windows_of(window_row(WINDOW_S, factors(row)) for row in rows)
    watts = np.array([float(row[power]) for row in rows])
    labels = {name: np.array([row[key] for row in rows]) for name, key in groups.items()}
    return Measured(name, windows, watts * WINDOW_S, labels)


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def l20() -> Measured:
    """NVIDIA L20, Qwen2.5-7B: decode and prefill at six clocks."""
    profile = table_of(row for name in L20_FILES for row in parse_csv((L20 / name).read_text(), name))
    profile = profile.select(np.isfinite(profile.power_w))
    capacity = 463_824.0
    rows = [
        window_row(
            WINDOW_S,
            {
                "clock_mhz": clock,
                "running": max(batch, 1.0),
                "kv_capacity_tokens": max(capacity, kv),
                "kv_usage": kv / max(capacity, kv),
                "steps_per_s": 1.0 / step_s,
                "output_tokens_per_s": batch / step_s,
                "prompt_tokens_per_s": prefill / step_s,
                "prompt_mean_tokens": prefill if prefill else float("nan"),
                "token_budget": 16384.0,
                "utilization": 1.0,
                "tp": 1.0,
            },
        )
        for clock, batch, kv, prefill, step_s in zip(
            profile.clock_mhz, *profile.load, profile.step_time_s, strict=True
        )
    ]
    groups = {"clock": profile.clock_mhz.astype(str)}
    return Measured("L20 Qwen2.5-7B", windows_of(rows), profile.power_w * WINDOW_S, groups, profile)


def _batch_factors(row: Row) -> dict[str, float]:
    latency_s, batch = float(row["total_latency_s"]), float(row["batch"])
    found = {
        "clock_mhz": float(row["freq_mhz"]),
        "running": batch,
        "requests_per_s": batch / latency_s,
        "tp": 1.0,
    }
    if "out_len_gt" in row:
        low, high = float(row["out_len_gt"]), float(row["out_len_le"])
        output = (low + high) / 2 if np.isfinite(low + high) else max(low, 1.0)
        found |= {
            "steps_per_s": output / latency_s,
            "output_tokens_per_s": batch * output / latency_s,
            "output_mean_tokens": output,
            "prompt_mean_tokens": float(row["input_len"]),
            "prompt_tokens_per_s": batch * float(row["input_len"]) / latency_s,
        }
    return found


def a100() -> Measured:
    """A100, Qwen2.5-7B under vLLM: batches at 15 clocks; average power over prefill, decode and idling."""
    rows = _read(DATA / "profiles" / "a100_energyllm" / "qwen25_7b_recovered.csv")
    return _measured("A100 Qwen2.5-7B", rows, _batch_factors, "avg_power_w", {"clock": "freq_mhz"})


def a100_other_model() -> Measured:
    """The same GPU with two models: one is fitted, the other predicted. Only what both tell is used."""
    folder = DATA / "profiles" / "a100_energyllm"
    files = ("qwen25_7b_recovered.csv", "llama31_8b_recovered.csv")
    names = ("model", "freq_mhz", "batch", "total_latency_s", "avg_power_w")
    rows = [{name: row[name] for name in names} for file in files for row in _read(folder / file)]
    return _measured("A100 both models", rows, _batch_factors, "avg_power_w", {"model": "model"})


def caps() -> Measured:
    """A100 and RTX PRO 6000: kernels by clock and power cap; only the memory benchmark tells its traffic."""

    def factors(row: Row) -> dict[str, float]:
        told = row["bandwidth_gb_s"]
        return {
            "clock_mhz": float(row["freq_mhz"]),
            "power_cap_w": float(row["power_limit_w"]),
            "bytes_per_s": float(told) * 1e9 if told else float("nan"),
            "steps_per_s": 1.0 / float(row["time_s"]),
            "utilization": 1.0,
        }

    rows = _read(DATA / "power" / "a100_rtxpro6000_freq_x_powercap.csv")
    rows = [row for row in rows if row["gpu"].startswith("A100")]
    return _measured(
        "A100 clock x cap", rows, factors, "avg_power_w", {"clock": "freq_mhz", "kernel": "bench"}
    )


def _gemm(row: Row) -> tuple[float, float]:
    m, n, k = (float(row[name]) for name in "mnk")
    return 2 * m * n * k, 2 * (m * k + k * n + m * n)


def _decode_attention(row: Row) -> tuple[float, float]:
    batch, heads, kv_heads = (float(row[name]) for name in ("batch_size", "num_heads", "num_key_value_heads"))
    context = float(row["isl"]) + float(row["step"])
    return 4 * batch * heads * context * HEAD, 4 * batch * kv_heads * context * HEAD


def _prompt_attention(row: Row) -> tuple[float, float]:
    batch, heads, kv_heads = (float(row[name]) for name in ("batch_size", "num_heads", "num_key_value_heads"))
    length = float(row["isl"])
    return 2 * batch * heads * length**2 * HEAD, 4 * batch * (heads + kv_heads) * length * HEAD


KERNELS: Mapping[str, tuple[str, Callable[[Row], tuple[float, float]], str]] = {
    "GEMM": ("gemm_bf16.csv", _gemm, "n"),
    "decode attention": ("gen_attention_bf16_hd128.csv", _decode_attention, "num_heads"),
    "prompt attention": ("ctx_attention_bf16_hd128.csv", _prompt_attention, "num_heads"),
}


def _kernels(kind: str) -> Callable[[], Measured]:
    file, work, shape = KERNELS[kind]

    def factors(row: Row) -> dict[str, float]:
        seconds = float(row["latency"]) / 1000.0
        flops, moved = work(row)
        return {
            "flops_per_s": flops / seconds,
            "bytes_per_s": moved / seconds,
            "steps_per_s": 1.0 / seconds,
            "utilization": 1.0,
        }

    def make() -> Measured:
        rows = [row for row in _read(DATA / "power" / "h200_kernels" / file) if float(row["power"]) > 0]
        kept = np.random.default_rng(0).permutation(len(rows))[:KERNEL_ROWS]
        chosen = [rows[place] for place in np.sort(kept)]
        return _measured(f"H200 {kind}", chosen, factors, "power", {"shape": shape})

    return make


WEIGHT_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "mxfp4": 0.53}


def _served_factors(row: Row) -> dict[str, float]:
    tokens, batch = float(row["output_throughput_tokens_per_sec"]), float(row["avg_batch_size"])
    steps = tokens / max(batch, 1e-6)
    active, total = (
        float(row[name]) * 1e9 for name in ("activated_params_billions", "total_params_billions")
    )
    output = float(row["avg_output_len"])
    return {
        "running": batch,
        "output_tokens_per_s": tokens,
        "steps_per_s": steps,
        "output_mean_tokens": output,
        "requests_per_s": tokens / max(output, 1.0),
        "flops_per_s": 2 * active * tokens,
        # A mixture of experts reads what its batch touches, at most everything.
        "bytes_per_s": min(active * batch, total) * WEIGHT_BYTES[row["weight_precision"]] * steps,
        "tp": float(row["num_gpus"]),
    }


def _served() -> Iterator[Callable[[], Measured]]:
    """ML.ENERGY v3: models served on H100 and B200, by GPU."""
    for gpu in ("H100", "B200"):

        def make(gpu: str = gpu) -> Measured:
            rows = _read(DATA / "profiles" / "fixed_clock" / "mlenergy_v3_llm.csv")
            mine = [row for row in rows if row["gpu_model"] == gpu and float(row["avg_batch_size"]) > 0]
            groups = {"model": "model_id", "task": "task"}
            return _measured(f"{gpu} ML.ENERGY", mine, _served_factors, "avg_power_watts", groups)

        yield make
