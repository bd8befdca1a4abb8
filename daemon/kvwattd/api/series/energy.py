"""Series of one instance's attributed energy; `model` is the served model's name."""

from __future__ import annotations

from collections.abc import Callable

from kvwattd.api.schemas import AttributionView, EnergyModelView, InstanceView
from kvwattd.api.series.base import Samples, Series


def _told(
    name: str, help_: str, value: Callable[[AttributionView], float | None], *, counter: bool = False
) -> Series[InstanceView]:
    def samples(view: InstanceView) -> Samples:
        told = view.attribution
        return [((view.model_name or "",), value(told))] if told is not None else []

    return Series(name, help_, samples, ("model",), counter)


def _parts(view: InstanceView) -> Samples:
    told = view.attribution
    parts = told.parts_j.items() if told is not None else ()
    return [((view.model_name or "", part), joules) for part, joules in parts]


def _per_token(view: InstanceView) -> Samples:
    told, model = view.attribution, view.model_name or ""
    if told is None:
        return []
    return [((model, "excluded"), told.output_token_j), ((model, "included"), told.output_token_whole_j)]


def _of_requests(view: InstanceView) -> Samples:
    told, model = view.attribution, view.model_name or ""
    return [((model, "0.5"), told.request_p50_j), ((model, "0.99"), told.request_p99_j)] if told else []


def _model(
    name: str, help_: str, value: Callable[[EnergyModelView], float | None], *, counter: bool = False
) -> Series[InstanceView]:
    def samples(view: InstanceView) -> Samples:
        told = view.model.energy
        return [((), value(told))] if told is not None else []

    return Series(name, help_, samples, (), counter)


ENERGY_SERIES: tuple[Series[InstanceView], ...] = (
    Series(
        "kvwatt_energy_attributed_joules",
        "Measured energy by what it went into (weights, prefill, decode, kv, idle, unknown), in joules; the "
        "parts add up to the counters.",
        _parts,
        ("model", "part"),
        counter=True,
    ),
    Series(
        "kvwatt_output_token_energy_joules",
        "Energy per output token over the last minutes, idle energy excluded or included, in joules.",
        _per_token,
        ("model", "idle"),
    ),
    _told(
        "kvwatt_request_energy_mean_joules",
        "Energy per finished request over the last minutes, idle energy excluded, in joules.",
        lambda a: a.request_j,
    ),
    Series(
        "kvwatt_request_energy_joules",
        "Energy of single requests that the tap told of, quantiles of the newest, in joules.",
        _of_requests,
        ("model", "quantile"),
    ),
    _told(
        "kvwatt_energy_output_tokens",
        "Output tokens that the attributed energy was for.",
        lambda a: a.output_tokens_total,
        counter=True,
    ),
    _told(
        "kvwatt_energy_requests",
        "Finished requests that the attributed energy was for.",
        lambda a: a.requests_total,
        counter=True,
    ),
    _told(
        "kvwatt_energy_requests_attributed",
        "Of these, requests that ended with joules of their own.",
        lambda a: float(a.attributed_total),
        counter=True,
    ),
    _model(
        "kvwatt_energy_model_accuracy_ratio",
        "1 - mean relative error of the energy model over ten-second windows that it had not seen.",
        lambda m: m.accuracy_ratio,
    ),
    _model(
        "kvwatt_energy_model_windows",
        "Ten-second windows kept to learn the energy model from.",
        lambda m: float(m.windows),
    ),
    Series(
        "kvwatt_energy_model_refits",
        "Refits of the energy model by outcome.",
        lambda v: (
            [((str(outcome),), float(n)) for outcome, n in v.model.energy.outcomes_total.items()]
            if v.model.energy is not None
            else []
        ),
        ("outcome",),
        counter=True,
    ),
)
