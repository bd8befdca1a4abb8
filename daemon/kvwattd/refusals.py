"""A GPU that refused a clock is left at default for a while, twice as long after every further refusal."""

from __future__ import annotations

from dataclasses import dataclass

RETRY_S, RETRY_MAX_S = 5.0, 60.0


@dataclass
class Refusals:
    """`fault`: why no clock is tried now; None: one may be."""

    fault: str | None = None
    _until_s: float = 0.0
    _in_a_row: int = 0

    def refused(self, reason: str, now_s: float) -> None:
        """A clock could not be set."""
        self.fault = reason
        self._until_s = now_s + min(RETRY_S * 2.0**self._in_a_row, RETRY_MAX_S)
        self._in_a_row += 1

    def obeyed(self) -> None:
        """A clock was set: the next refusal is the first again."""
        self._in_a_row = 0

    def expire(self, now_s: float) -> None:
        """The time for another try may have come."""
        if now_s >= self._until_s:
            self.fault = None
