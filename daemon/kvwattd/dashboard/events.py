"""Server-sent events: everything once a second, for as many pages as there are places.

A stream ends after a few seconds and the page asks again: so a connection that is stuck or forgotten keeps no
place, as with every other call (`api.server.PATIENCE_S`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field

from kvwattd.api.ports import ControlPlane
from kvwattd.api.problems import Refused
from kvwattd.api.schemas import DecisionView, StatusView, TrajectoryView
from kvwattd.api.schemas.base import View

PERIOD_S = 1.0
STREAM_S = 20.0
STREAMS = 16
DECISIONS = 40
# Each takes a fraction of a millisecond of the daemon's loop; of more instances the page asks for the one
# that it shows.
TRAJECTORIES = 16


class FrameView(View):
    """What the page shows: the state now, the newest decisions and where every instance is heading."""

    unix_s: float
    status: StatusView
    decisions: list[DecisionView]
    trajectories: dict[str, TrajectoryView] = Field(default_factory=dict, description="by instance")


class Frames:
    """One frame at a time, made once for all who look."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._text = ""
        self._made_s = float("-inf")
        self.streams = 0

    def newest(self) -> str:
        """The frame of this second."""
        now_s = time.monotonic()
        if now_s - self._made_s >= PERIOD_S / 2:
            status = self._plane.status()
            frame = FrameView(
                unix_s=time.time(),
                status=status,
                decisions=self._plane.decisions(None, DECISIONS),
                trajectories=self._trajectories(status),
            )
            self._text, self._made_s = f"data: {frame.model_dump_json()}\n\n", now_s
        return self._text

    def _trajectories(self, status: StatusView) -> dict[str, TrajectoryView]:
        names = [view.name for view in status.instances][:TRAJECTORIES]
        found = {name: self._plane.trajectory(name) for name in names}
        return {name: view for name, view in found.items() if view is not None}

    async def stream(self) -> AsyncIterator[str]:
        """Frames until the stream's time is over."""
        self.streams += 1
        try:
            yield f"retry: {int(1000 * PERIOD_S)}\n\n"
            end_s = time.monotonic() + STREAM_S
            while time.monotonic() < end_s:
                yield self.newest()
                await asyncio.sleep(PERIOD_S)
        finally:
            self.streams -= 1


def events(plane: ControlPlane) -> APIRouter:
    """GET /events."""
    router, frames = APIRouter(tags=["read"]), Frames(plane)

    @router.get("/events", response_class=StreamingResponse)
    async def newest() -> StreamingResponse:
        """Status and newest decisions once a second, as server-sent events; ends after 20 s: ask again."""
        if frames.streams >= STREAMS:
            raise Refused(503, f"{STREAMS} pages look already", "a call later", {"Retry-After": "5"})
        return StreamingResponse(
            frames.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    return router
