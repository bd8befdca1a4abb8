"""Fitting a card's laws to published measurements: `python -m kvwatt_sim.fit --card l20 --data DIR`."""
