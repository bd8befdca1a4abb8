"""What REST shows of shadow mode."""

from __future__ import annotations

from kvwattd.api.schemas.shadow import ShadowView, WouldKeepView
from kvwattd.instance import InstanceRuntime
from kvwattd.regime import Regime
from kvwattd.shadow.account import would_error_ratio


def shadow_view(run: InstanceRuntime) -> ShadowView | None:
    """None outside shadow mode."""
    if run.regime is not Regime.SHADOW:
        return None
    saved = run.shadow.savings
    low = high = None
    if saved.ratio is not None:
        half = would_error_ratio(run.model.power_error_ratio, 1.0 - saved.ratio)
        low, high = saved.ratio - half, saved.ratio + half
    return ShadowView(
        clock_mhz=run.last.clock_mhz if run.last is not None else None,
        baseline_j=saved.baseline_j,
        would_j=saved.actual_j,
        saved_j=saved.saved_j,
        saved_ratio=saved.ratio,
        low_ratio=low,
        high_ratio=high,
        attainment={
            metric: WouldKeepView(met=kept.met, total=kept.total, ratio=kept.ratio)
            for metric, kept in run.shadow.kept.items()
        },
    )
