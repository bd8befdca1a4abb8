"""The page at `/`: what the daemon sees and does, live, and its controls behind the token.

The page itself holds no data and needs no token; what it shows comes from /api/v1/events, which asks for
one where `api.read_access` does. Nothing is fetched from elsewhere: plots are drawn by plotly's own bundle,
out of its Python package.
"""

from __future__ import annotations

from kvwattd.dashboard.events import events
from kvwattd.dashboard.files import page

__all__ = ["events", "page"]
