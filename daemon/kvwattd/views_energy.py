"""Attributed energy as REST and /metrics show it."""

from __future__ import annotations

from collections.abc import Sequence

from kvwatt.attribution import MICRO, RequestEnergy
from kvwattd.api.schemas import AttributionView, RequestEnergyView
from kvwattd.energy_account import EnergyAccount

NEWEST = 16


def attribution_view(account: EnergyAccount) -> AttributionView | None:
    """None before anything was charged."""
    if account.book.total == 0:
        return None
    joules = sorted(record.joules for record in account.records)
    return AttributionView(
        parts_j={str(part): amount / MICRO for part, amount in account.book.parts.items()},
        output_tokens_total=account.output_tokens,
        requests_total=account.requests,
        attributed_total=account.attributed,
        output_token_j=account.recent.output_token_j(idle=False),
        output_token_whole_j=account.recent.output_token_j(idle=True),
        request_j=account.recent.request_j(idle=False),
        request_p50_j=_quantile(joules, 0.5),
        request_p99_j=_quantile(joules, 0.99),
        newest=[_record(record) for record in list(account.records)[: -NEWEST - 1 : -1]],
    )


def _quantile(ordered: Sequence[float], level: float) -> float | None:
    return ordered[min(int(level * len(ordered)), len(ordered) - 1)] if ordered else None


def _record(record: RequestEnergy) -> RequestEnergyView:
    return RequestEnergyView(
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        cached_tokens=record.cached_tokens,
        joules=record.joules,
        parts_j={str(part): amount for part, amount in record.parts_j.items()},
    )
