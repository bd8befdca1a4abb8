"""What a plant needs beside vLLM: a free port, and a model of the slowed server."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

from vllm_server import CARD, TOKEN_SCALE

from kvwatt import artifact
from kvwatt.profiles import table_of
from kvwatt.training import Origin, train
from kvwatt_sim.cards import load
from kvwatt_sim.virtual_profile import virtual_profile


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def train_model(folder: Path) -> Path:
    """A model from a profile of the card, in the tokens that vLLM counts."""
    card = load(CARD)
    rows = [
        replace(row, kv_tokens=row.kv_tokens / TOKEN_SCALE, prefill_tokens=row.prefill_tokens / TOKEN_SCALE)
        for row in virtual_profile(card, seed=1)
    ]
    model = train(table_of(rows), Origin(card.gpu_name, "0.32.0"), folds=3, by_clock=False)
    artifact.save(model, folder)
    return folder
