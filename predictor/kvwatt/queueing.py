"""What one instance does at a rate and a clock, and so how much it carries: the public names.

    demand = Demand.of(prompt_lengths, output_lengths, dispersion)
    queue = InstanceQueue(compiled_model, engine_shape, demand)
    queue.at(rate_per_s, clock).ttft.quantile(0.99)
    table = capacity_table(queue, slo)

docs/instances-model.md has the equations and how far they can be trusted.
"""

from kvwatt.capacity_table import CapacityPoint, CapacityTable
from kvwatt.queueing_capacity import MixedQueue, Regime, capacity_table
from kvwatt.queueing_demand import Demand, Latency, lengths
from kvwatt.queueing_instance import InstanceQueue, Operation

__all__ = [
    "CapacityPoint",
    "CapacityTable",
    "Demand",
    "InstanceQueue",
    "Latency",
    "MixedQueue",
    "Operation",
    "Regime",
    "capacity_table",
    "lengths",
]
