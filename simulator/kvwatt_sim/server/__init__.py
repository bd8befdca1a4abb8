"""A simulated vLLM server in real time: real HTTP, vLLM's `/metrics`, steps timed by a hardware card.

Run it with `python -m kvwatt_sim.server --help`, or from Python with `kvwatt_sim.server.launch.SimServer`.
"""
