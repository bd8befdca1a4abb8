"""How a router shares requests between members of different kinds."""

from __future__ import annotations

from collections.abc import Mapping

MOST = 256  # HAProxy's largest weight


def weights(capacity_per_s: Mapping[str, float]) -> dict[str, int]:
    """A weight of 1 to MOST per kind, in proportion to what one of its members carries.

    A plan counts on shares like that. Under equal weights the smallest engine gets as many requests at a time
    as the largest. A kind of unknown capacity (0) gets the least weight of the others.
    """
    known = [rate for rate in capacity_per_s.values() if rate > 0.0]
    if not known:
        return dict.fromkeys(capacity_per_s, MOST)
    most, least = max(known), min(known)
    return {
        kind: max(round(MOST * (rate if rate > 0.0 else least) / most), 1)
        for kind, rate in capacity_per_s.items()
    }
