"""Shows the tap to a vLLM whose environment does not have this distribution installed."""

from __future__ import annotations

import tomllib
from pathlib import Path

from vllm_server import REPOSITORY

GROUP = "vllm.stat_logger_plugins"


def plugin_paths(folder: Path, target: str | None = None) -> list[Path]:
    """What to put on the PYTHONPATH of vLLM: the plugin and its entry point (or `target`)."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    given = target or project["entry-points"][GROUP]["kvwatt"]
    metadata = folder / "plugin" / f"kvwatt-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kvwatt\nVersion: {project['version']}\n"
    )
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nkvwatt = {given}\n")
    return [metadata.parent, REPOSITORY / "daemon"]
