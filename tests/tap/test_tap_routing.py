"""A record goes to the one instance it can be of, or to none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tap_records import record
from test_tap_stream import page

from kvwatt.policy import PolicyParams
from kvwattd.config import parse_config
from kvwattd.durations import Durations
from kvwattd.instance import InstanceRuntime
from kvwattd.observation import Observation
from kvwattd.tap_routing import addressee
from kvwattd.telemetry.tap import TapError


def runs(*instances: dict[str, Any]) -> list[InstanceRuntime]:
    """Runtimes of these instances, named a, b, c."""
    known = [
        {"name": "abc"[i], "url": f"http://127.0.0.1:800{i}", "gpus": [str(i)]} | given
        for i, given in enumerate(instances)
    ]
    config = parse_config({"slo": {"tbt": {"limit_s": 0.1}}, "instance": known})
    return [
        InstanceRuntime(c, config.slo_for(c.name), PolicyParams(), Observation(0.5, 1.5), Durations())
        for c in config.instances
    ]


def test_a_server_that_was_given_a_name_is_that_instance() -> None:
    """Two servers of one model are told apart by name."""
    both = runs({"model_name": "tiny"}, {"model_name": "tiny"})
    assert addressee(record(instance="b"), both).name == "b"


def test_without_a_name_model_and_engine_tell() -> None:
    """The served model's name, and the rank where several engines share one page."""
    ranks = runs({"model_name": "tiny", "engine": "0"}, {"model_name": "tiny", "engine": "1"})
    assert addressee(record(engine=1), ranks).name == "b"
    models = runs({"model_name": "other"}, {"model_name": "tiny"})
    assert addressee(record(), models).name == "b"


def test_the_page_tells_which_engine_an_instance_is() -> None:
    """Data parallel: another rank's records are not mixed in, named or not."""
    (run,) = runs({"model_name": "tiny"})
    run.observation.on_page(replace(page(0.0, 0.0), engine="1"))
    for named in ("", "a"):
        assert addressee(record(engine=1, instance=named), [run]).name == "a"
        with pytest.raises(TapError):
            addressee(record(engine=0, instance=named), [run])


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({}, "ambiguous"),
        ({"instance": "z"}, "unknown_instance"),
        ({"model": "never-heard-of"}, "unknown_instance"),
    ],
)
def test_what_fits_none_or_several_is_refused(changed: dict[str, str], cause: str) -> None:
    """A record is never given to an instance by guess."""
    both = runs({"model_name": "tiny"}, {"model_name": "tiny"})
    with pytest.raises(TapError) as caught:
        addressee(record(**changed), both)
    assert caught.value.cause == cause


def test_an_instance_whose_model_is_not_known_yet_gets_nothing_by_model() -> None:
    """Before the first page nobody knows what it serves."""
    with pytest.raises(TapError):
        addressee(record(), runs({}))
