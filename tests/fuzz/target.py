"""What is fuzzed: a parser, what to start from, and the refusals that it documents."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from mutation import mutate_bytes, mutate_document

Kind = Literal["bytes", "json", "msgpack"]


class Refused(Exception):  # noqa: N818 (an outcome, not an error)
    """A documented refusal that the parser tells otherwise than by raising."""


@dataclass(frozen=True)
class Target:
    """One parser. `share` is its part of all inputs; `splice` mixes corpus entries."""

    name: str
    share: float
    corpus: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    kind: Kind = "bytes"

    def make(self, rng: random.Random) -> bytes:
        """One mutated input."""
        chosen = rng.choice(self.corpus)
        if self.kind == "bytes" or rng.random() < 0.4:
            return mutate_bytes(rng, chosen, self.corpus)
        if self.kind == "json":
            return json.dumps(mutate_document(rng, json.loads(chosen))).encode()
        changed = mutate_document(rng, msgspec.msgpack.decode(chosen))
        return msgspec.msgpack.encode(_packable(changed))


def _packable(value: object) -> object:
    """msgpack has no integers beyond 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return math.inf if value > 0 else -math.inf
    if isinstance(value, list):
        return [_packable(item) for item in value]
    if isinstance(value, dict):
        return {key: _packable(item) for key, item in value.items()}
    return value


def from_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return written
