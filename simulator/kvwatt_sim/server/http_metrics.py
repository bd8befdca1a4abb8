"""The `http_*` families that vLLM's page has from prometheus-fastapi-instrumentator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

_DURATION_FINE_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
    *(7.5, 10.0, 30.0, 60.0),
)
_DURATION_COARSE_S = (0.1, 0.5, 1.0)


class HttpMetrics:
    """Counts requests to the API (not to `/metrics`, `/health` and the like, which vLLM leaves out)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ("method", "status", "handler"),
            registry=registry,
        )
        self._request_size = Summary(
            "http_request_size_bytes",
            "Content length of incoming requests by handler. Only value of header is respected. "
            "Otherwise ignored. No percentile calculated. ",
            ("handler",),
            registry=registry,
        )
        self._response_size = Summary(
            "http_response_size_bytes",
            "Content length of outgoing responses by handler. Only value of header is respected. "
            "Otherwise ignored. No percentile calculated. ",
            ("handler",),
            registry=registry,
        )
        self._fine = Histogram(
            "http_request_duration_highr_seconds",
            "Latency with many buckets but no API specific labels. Made for more accurate percentile "
            "calculations. ",
            registry=registry,
            buckets=_DURATION_FINE_S,
        )
        self._coarse = Histogram(
            "http_request_duration_seconds",
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler "
            "is important. ",
            ("method", "handler"),
            registry=registry,
            buckets=_DURATION_COARSE_S,
        )

    def observe(self, handler: str, status: int, duration_s: float, request_bytes: int) -> None:
        """Record one POST; a streamed response has no content length, so its size counts as 0."""
        self._requests.labels("POST", f"{status // 100}xx", handler).inc()
        self._request_size.labels(handler).observe(request_bytes)
        self._response_size.labels(handler).observe(0)
        self._fine.observe(duration_s)
        self._coarse.labels("POST", handler).observe(duration_s)
