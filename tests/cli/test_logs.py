"""Log lines for people, for programs and for journald."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys
from kvwattd.logs import configure_logging
configure_logging("info", sys.argv[1])
logging.getLogger("a").warning("two\\nlines")
logging.getLogger("a").debug("unseen")
try:
    raise ValueError("why")
except ValueError:
    logging.getLogger("b").exception("failed")
"""


GUARD = """
import logging
from kvwattd.logs import configure_guard_logging
configure_guard_logging()
logging.getLogger("a").warning("two\\nlines")
logging.getLogger("a").info("ready")
"""


def logged(log_format: str, path: Path, journal: str | None, program: str = PROGRAM) -> list[str]:
    """What the program writes to a file as its standard error; `journal`: JOURNAL_STREAM, of it if empty."""
    env = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    with path.open("wb") as file:
        there = os.fstat(file.fileno())
        if journal is not None:
            env["JOURNAL_STREAM"] = journal or f"{there.st_dev}:{there.st_ino}"
        subprocess.run([sys.executable, "-c", program, log_format], env=env, stderr=file, check=True)
    return path.read_text().splitlines()


def test_journald_gets_a_priority_before_every_line(tmp_path: Path) -> None:
    """Warnings are 4, errors 3, a traceback's lines as well; the time is journald's."""
    lines = logged("text", tmp_path / "log", "")
    assert lines[:2] == ["<4>a: two", "<4>lines"]
    assert lines[2] == "<3>b: failed" and all(line.startswith("<3>") for line in lines[2:])


def test_the_guard_bears_its_name_and_gives_journald_its_priorities(tmp_path: Path) -> None:
    """Where the daemon started it, its lines stand among the daemon's."""
    assert logged("", tmp_path / "log", "", GUARD) == [
        "<4>kvwatt-guard: two",
        "<4>lines",
        "<6>kvwatt-guard: ready",
    ]
    assert logged("", tmp_path / "log", None, GUARD)[0] == "kvwatt-guard: WARNING: two"


def test_json_is_an_object_per_line_and_has_the_priority_too(tmp_path: Path) -> None:
    for journal in (None, ""):
        lines = logged("json", tmp_path / "log", journal)
        prefixes = ["<4>", "<3>"] if journal is not None else ["", ""]
        rows = [json.loads(line.removeprefix(p)) for line, p in zip(lines, prefixes, strict=True)]
        assert rows[0]["message"] == "two\nlines" and rows[0]["level"] == "warning"
        assert "ValueError: why" in rows[1]["exception"]


@pytest.mark.parametrize("journal", [None, "1:1"])
def test_a_file_gets_text_with_the_time(tmp_path: Path, journal: str | None) -> None:
    """Also where the variable was only inherited: it names another stream."""
    first = logged("text", tmp_path / "log", journal)[0]
    assert "Z WARNING a: two" in first and not first.startswith("<")


def test_a_level_in_between_has_the_priority_below_it() -> None:
    from kvwattd.logs import JournalFormatter

    made = logging.LogRecord("a", logging.WARNING + 5, "", 0, "m", (), None)
    assert JournalFormatter(logging.Formatter("%(message)s")).format(made) == "<4>m"
