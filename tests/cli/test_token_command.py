"""`kvwatt token`: prints a token once and keeps its digest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kvwattd.api.tokens import TokenFile


def token(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvwattd", "token", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_the_printed_token_is_valid_and_stands_nowhere(tmp_path: Path) -> None:
    """Standard output is the token and nothing else; the file holds its digest, name and scope."""
    path = tmp_path / "tokens.toml"
    done = token("grafana", "--scope", "read", "--file", str(path))
    made = done.stdout.strip()
    assert done.returncode == 0 and len(made) == 64
    assert made not in path.read_text() and made not in done.stderr
    assert "chown" in done.stderr
    tokens = TokenFile(path)
    tokens.load()
    entry = tokens.identify(made)
    assert entry is not None and (entry.name, entry.scope) == ("grafana", "read")


def test_a_name_that_cannot_be_used_is_refused_with_what_is_accepted(tmp_path: Path) -> None:
    """Exit code 2, the file as it was, and no token printed."""
    path = tmp_path / "tokens.toml"
    assert token("operator", "--file", str(path)).returncode == 0
    before = path.read_text()
    for name in ("operator", 'a"b', "", "a b"):
        done = token(name, "--file", str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert str(path) in done.stderr and "accepted" in done.stderr
        assert path.read_text() == before
