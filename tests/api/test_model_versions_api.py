"""Versions of a model over REST: listed for everybody, rolled back with the token, written to the log."""

from __future__ import annotations

import logging

import httpx
import pytest
from fake_plane import TOKEN, FakePlane

AUTH = {"Authorization": f"Bearer {TOKEN}"}
URL = "/api/v1/instances/chat/model"


async def test_versions_are_listed_with_what_they_were_judged_on(client: httpx.AsyncClient) -> None:
    """Which one serves, whether it is held, and how refits have gone."""
    body = (await client.get(f"{URL}/versions")).raise_for_status().json()
    assert [v["version"] for v in body["versions"] if v["serving"]] == [body["serving"]] == [2]
    assert body["held"] is False
    assert body["versions"][1]["champion_error_ratio"] == 0.08
    assert body["refit"]["last"] == "kept" and body["refit"]["outcomes_total"]["promoted"] == 2


async def test_rollback_without_a_number_is_one_back_and_holds(
    client: httpx.AsyncClient, plane: FakePlane, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty request goes back one version and keeps refits off; the audit line tells who and what."""
    with caplog.at_level(logging.INFO):
        body = (await client.put(f"{URL}/rollback", json={}, headers=AUTH)).raise_for_status().json()
    assert (body["serving"], body["held"]) == (1, True)
    assert (plane.serving, plane.held) == (1, True)
    assert '"after":{"serving":1,"held":true}' in caplog.text
    assert TOKEN not in caplog.text


async def test_a_hold_is_released_by_going_to_a_version_without_it(client: httpx.AsyncClient) -> None:
    """Any version may be asked for by number, forward too."""
    body = (await client.put(f"{URL}/rollback", json={"version": 2, "hold": False}, headers=AUTH)).json()
    assert (body["serving"], body["held"]) == (2, False)


async def test_a_version_that_is_not_there_is_refused_with_those_that_are(client: httpx.AsyncClient) -> None:
    """409, the number, and what is accepted; an unknown instance is 404."""
    refused = await client.put(f"{URL}/rollback", json={"version": 9}, headers=AUTH)
    assert refused.status_code == 409
    assert refused.json()["value"] == "9" and refused.json()["accepted"] == "one of 0, 1, 2"
    unknown = await client.put("/api/v1/instances/x/model/rollback", json={}, headers=AUTH)
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    "body", [{"version": -1}, {"version": True}, {"version": "1"}, {"hold": 1}, {"v": 1}]
)
async def test_malformed_requests_change_nothing(
    client: httpx.AsyncClient, plane: FakePlane, body: dict[str, object]
) -> None:
    """A wrong type, a negative number, an unknown key."""
    response = await client.put(f"{URL}/rollback", json=body, headers=AUTH)
    assert response.status_code == 422
    assert (plane.serving, plane.held) == (2, False)


async def test_metrics_tell_version_and_outcome(client: httpx.AsyncClient) -> None:
    """The version in use, refits by outcome, and the latest one."""
    page = (await client.get("/metrics")).text
    assert 'kvwatt_model_version{instance="chat"} 2.0' in page
    assert 'kvwatt_model_refits_total{instance="chat",outcome="promoted"} 2.0' in page
    assert 'kvwatt_model_last_refit{instance="chat",outcome="kept"} 1.0' in page
    assert 'kvwatt_model_last_refit{instance="chat",outcome="failed"} 0.0' in page
    assert 'kvwatt_model_samples{instance="chat"} 321.0' in page
