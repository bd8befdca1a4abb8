"""The pool over REST and /metrics: what it shows, the number by hand, the lists for routers."""

from __future__ import annotations

import httpx
import pytest
from fake_plane import READ_TOKEN, TOKEN, FakePlane
from prometheus_client.parser import text_string_to_metric_families as parse_text

CONTROL = {"Authorization": f"Bearer {TOKEN}"}
READ = {"Authorization": f"Bearer {READ_TOKEN}"}


async def test_the_pool_shows_numbers_forecast_and_reasons(client: httpx.AsyncClient) -> None:
    """Desired and ready by kind, the forecast, the newest plans with their words."""
    seen = (await client.get("/api/v1/pool")).raise_for_status().json()
    assert [(kind["kind"], kind["desired"], kind["ready"]) for kind in seen["kinds"]] == [
        ("tp1", 2, 1),
        ("tp4", None, 0),
    ]
    assert seen["forecast"]["quantile_per_s"] == 4.0
    assert seen["changes"][0]["actions"][0] == {
        "member": "chat-2",
        "action": "start",
        "reason": "4/s are coming",
        "refused": None,
    }


async def test_a_number_by_hand_is_set_shown_and_cleared(client: httpx.AsyncClient) -> None:
    """PUT needs a token of scope control, and DELETE goes back to automatic."""
    body = {"instances": 3, "duration_s": 600}
    assert (await client.put("/api/v1/pool/scale", json=body)).status_code == 401
    assert (await client.put("/api/v1/pool/scale", json=body, headers=READ)).status_code == 403
    done = (await client.put("/api/v1/pool/scale", json=body, headers=CONTROL)).raise_for_status().json()
    assert (done["instances"], done["left_s"]) == (3, 600) and done["by"]
    assert (await client.get("/api/v1/pool")).json()["manual"] == done
    assert (await client.delete("/api/v1/pool/scale", headers=CONTROL)).status_code == 204
    assert (await client.get("/api/v1/pool")).json()["manual"] is None
    audit = (await client.get("/api/v1/audit", headers=CONTROL)).json()
    actions = [(item["action"], item["outcome"]) for item in audit]
    assert actions[0] == ("DELETE /api/v1/pool/scale", "done")
    assert ("PUT /api/v1/pool/scale", "refused") in actions


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"instances": 9, "duration_s": 60}, 409, "instances"),
        ({"instances": 0, "duration_s": 60}, 422, "instances"),
        ({"instances": 2, "duration_s": 0}, 422, "duration_s"),
        ({"instances": 2}, 422, "duration_s"),
        ({"instances": "2", "duration_s": 60}, 422, "instances"),
    ],
)
async def test_nonsense_is_refused_by_name(
    client: httpx.AsyncClient, body: dict[str, object], status: int, field: str
) -> None:
    """The answer names the field, and nothing is set."""
    answer = await client.put("/api/v1/pool/scale", json=body, headers=CONTROL)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert (await client.get("/api/v1/pool")).json()["manual"] is None


async def test_targets_in_both_formats(client: httpx.AsyncClient) -> None:
    """Prometheus HTTP service discovery by default, plain JSON on request."""
    groups = (await client.get("/api/v1/pool/targets")).raise_for_status().json()
    assert groups[0]["targets"] == ["127.0.0.1:8000"]
    assert groups[0]["labels"]["__meta_kvwatt_instance"] == "chat"
    plain = (await client.get("/api/v1/pool/targets", params={"format": "plain"})).json()
    assert plain == {"instances": [{"name": "chat", "kind": "tp1", "url": "http://127.0.0.1:8000"}]}


async def test_a_list_that_is_not_known_is_no_empty_list(client: httpx.AsyncClient, plane: FakePlane) -> None:
    """Readers keep what they had: 503 before anything is known, 409 without a pool."""
    plane.listed = None
    answer = await client.get("/api/v1/pool/targets")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    plane.pooled = False
    assert (await client.get("/api/v1/pool/targets")).status_code == 409


async def test_metrics_of_the_pool(client: httpx.AsyncClient, plane: FakePlane) -> None:
    """Counts by kind, events by action and outcome, the start's histogram; nothing without a pool."""
    page = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in parse_text((await client.get("/metrics")).text)
        for s in family.samples
    }
    assert page["kvwatt_instances_desired", ("kind", "tp1")] == 2
    assert ("kvwatt_instances_desired", ("kind", "tp4")) not in page
    assert page["kvwatt_instances_stopped", ("kind", "tp4")] == 1
    assert page["kvwatt_scale_events_total", ("action", "start"), ("outcome", "done")] == 3
    assert page["kvwatt_pool_errors_total", ("cause", "unreachable"), ("part", "router")] == 2
    assert page["kvwatt_pool_plan_state", ("state", "up")] == 1
    assert page["kvwatt_forecast_requests", ("value", "upper")] == 4
    start = "kvwatt_instance_start_duration_seconds"
    assert page[f"{start}_bucket", ("action", "start"), ("kind", "tp1"), ("le", "60.0")] == 2
    assert page[f"{start}_count", ("action", "start"), ("kind", "tp1")] == 3
    plane.pooled = False
    names = {family.name for family in parse_text((await client.get("/metrics")).text) if family.samples}
    assert not {name for name in names if "instances_" in name or "pool" in name or "forecast" in name}
