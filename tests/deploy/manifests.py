"""The shipped Kubernetes manifests as documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    import yaml  # a test without it is skipped before

    return [found for found in yaml.safe_load_all((FOLDER / name).read_text()) if found]
