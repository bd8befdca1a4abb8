"""The server of the scenarios, on a GPU that only a scenario's own damage holds back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvwatt_sim import cards
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid
from kvwatt_sim.server.launch import SimServer

CARD = "l20"
# More than any load draws at any clock. At the card's own cap a prompt at driver default is held back now and
# then, and a scenario that caps power within the minute after would not be told of: it is the same episode.
AMPLE_CAP_W = 600.0


def server_on(state: Path) -> SimServer:
    """Not started yet; `state` is the file of its one simulated GPU, made anew."""
    spec = cards.load(CARD).gpu_spec(demo_uuid(0))
    SimGpus.create(state, [replace(spec, default_cap_w=AMPLE_CAP_W, max_cap_w=AMPLE_CAP_W)]).close()
    return SimServer(CARD, state=state)


def well_behaved(server: SimServer, gpus: SimGpus) -> None:
    """Takes away whatever a scenario that failed halfway left behind."""
    if not server.running:
        server.start()
    server.misbehave("ok")
    gpus.clear_faults(0)
    gpus.set_permission("allow")
    gpus.set_temperature(0, None)
    gpus.set_power_cap_w(0, AMPLE_CAP_W)
