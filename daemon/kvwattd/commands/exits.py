"""Exit codes of every command: the one place that says what each means."""

from __future__ import annotations

from collections.abc import Mapping

DONE, FAILED, USAGE, UNREACHABLE, NOT_PERMITTED, INTERRUPTED = 0, 1, 2, 3, 4, 130

CODES: Mapping[int, str] = {
    DONE: "done",
    FAILED: "failed, or found a problem",
    USAGE: "wrong usage, configuration or input",
    UNREACHABLE: "the daemon does not answer",
    NOT_PERMITTED: "the daemon asks for a token, or for one of another scope",
    INTERRUPTED: "interrupted",
}
EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in CODES.items()) + "."
