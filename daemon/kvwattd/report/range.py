"""Moments as they are typed: a date, a time, or so long ago."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_AGO = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
ACCEPTED = "now, today, yesterday, 24h, 7d, 2026-01-31 or 2026-01-31T15:00 (local unless it has an offset)"


def moment_ms(text: str, now: datetime) -> int:
    """Milliseconds since 1970; `now` with its zone. Raises ValueError, saying what is accepted."""
    word = text.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    ago = _AGO.fullmatch(word)
    try:
        if word in named:
            when = named[word]
        elif ago is not None:
            when = now - timedelta(**{_UNITS[ago["unit"]]: float(ago["number"])})
        else:
            when = datetime.fromisoformat(text.strip())
        when = when if when.tzinfo is not None else when.replace(tzinfo=now.tzinfo)
        return round(when.timestamp() * 1e3)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r}: accepted is {ACCEPTED}") from error
