"""Logging to standard error: text for people or one JSON object per line; journald gets its priorities."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

# journald reads a leading <n> as the priority (sd-daemon(3)).
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JsonFormatter(logging.Formatter):
    """One object per line: time in unix seconds, level, logger, message, traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row)


class JournalFormatter(logging.Formatter):
    """What `inner` makes of a record, each line with journald's priority prefix, which journald takes off."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in self._inner.format(record).splitlines())


def _priority(level: int) -> int:
    """Of levels in between, that of the next lower one."""
    return next((priority for at, priority in reversed(_PRIORITY.items()) if level >= at), 7)


def configure_logging(level: str, log_format: str) -> None:
    """Send everything to standard error in the format that suits who reads it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their INFO lines come with every request and say nothing an operator needs.
    for chatty in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def configure_guard_logging() -> None:
    """The guard's lines bear its name, which tells them apart where the daemon started it."""
    handler = logging.StreamHandler(sys.stderr)
    if _is_journal():  # which adds time and unit itself
        handler.setFormatter(JournalFormatter(logging.Formatter("kvwatt-guard: %(message)s")))
    else:
        handler.setFormatter(logging.Formatter("kvwatt-guard: %(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _formatter(log_format: str) -> logging.Formatter:
    journal = _is_journal()
    if log_format == "json":
        return JournalFormatter(JsonFormatter()) if journal else JsonFormatter()
    if journal:  # which adds the time itself
        return JournalFormatter(logging.Formatter("%(name)s: %(message)s"))
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter


def _is_journal() -> bool:
    """Whether standard error is the journal's: what systemd says must be what it is (systemd.exec(5)).

    A child whose output was redirected inherits the variable alone.
    """
    told = os.environ.get("JOURNAL_STREAM", "")
    try:
        there = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return told == f"{there.st_dev}:{there.st_ino}"
