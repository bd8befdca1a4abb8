"""Every series of /metrics, as tables: name, help with the unit, extra labels and where the value is."""

from __future__ import annotations

from kvwattd.api.series.base import Series
from kvwattd.api.series.energy import ENERGY_SERIES
from kvwattd.api.series.gpu import GPU_SERIES
from kvwattd.api.series.instance import INSTANCE_SERIES as OTHER_SERIES
from kvwattd.api.series.ledger import LEDGER_SERIES
from kvwattd.api.series.pool import POOL_SERIES
from kvwattd.api.series.scheduler import SCHEDULER_SERIES
from kvwattd.api.series.shadow import SHADOW_SERIES
from kvwattd.api.series.status import STATUS_SERIES

INSTANCE_SERIES = (*OTHER_SERIES, *SHADOW_SERIES, *SCHEDULER_SERIES, *ENERGY_SERIES)

__all__ = ["GPU_SERIES", "INSTANCE_SERIES", "LEDGER_SERIES", "POOL_SERIES", "STATUS_SERIES", "Series"]
