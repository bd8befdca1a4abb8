"""docs/reference, written from the code: keys, metrics, calls, commands, the guard, files on disk."""

from __future__ import annotations

from pathlib import Path

from kvwattd.docs import artifacts, cli, configuration, guard, metrics, rest

EXAMPLE = Path("deploy/kvwatt.example.toml")
GUARD_EXAMPLE = Path("systemd/guard.toml")
FOLDER = Path("docs/reference")


def pages(root: Path) -> dict[str, str]:
    """File name -> text; `root` is a checkout, with the annotated examples of both configurations."""
    return {
        "configuration.md": configuration.page((root / EXAMPLE).read_text(encoding="utf-8")),
        "metrics.md": metrics.page(),
        "rest.md": rest.page(),
        "cli.md": cli.page(),
        "guard.md": guard.page((root / GUARD_EXAMPLE).read_text(encoding="utf-8")),
        "artifacts.md": artifacts.page(),
    }
