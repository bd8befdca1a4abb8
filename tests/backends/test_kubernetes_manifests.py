"""The shipped manifests: every field known to the API's models, and rights for what is called only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

client = pytest.importorskip("kubernetes.client", reason="the extra kubernetes is not installed")
yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MODELS = {
    "ConfigMap": "V1ConfigMap",
    "Deployment": "V1Deployment",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "ServiceAccount": "V1ServiceAccount",
}
# Of KEDA's definition of ScaledObject (v1alpha1), what the shipped one uses.
KEDA = {
    "spec": {
        "scaleTargetRef",
        "pollingInterval",
        "minReplicaCount",
        "maxReplicaCount",
        "fallback",
        "advanced",
        "triggers",
    },
    "fallback": {"failureThreshold", "replicas"},
    "scaleTargetRef": {"apiVersion", "kind", "name"},
    "trigger": {"type", "metricType", "metadata"},
}


def documents(name: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((FOLDER / name).read_text()) if found]


def through(model: str, found: object) -> object:
    """What is left of it after the API's model has read it: unknown fields are lost, wrong types fail."""
    api = client.ApiClient()
    return api.sanitize_for_serialization(api._ApiClient__deserialize(found, model))


ALL = [(path.name, found) for path in sorted(FOLDER.glob("*.yaml")) for found in documents(path.name)]


@pytest.mark.parametrize(("name", "found"), ALL, ids=[f"{name}-{found['kind']}" for name, found in ALL])
def test_every_field_is_known(name: str, found: dict[str, Any]) -> None:
    """Nothing is misspelt, misplaced or of a wrong type."""
    if found["kind"] == "ScaledObject":
        _check_keda(found)
    else:
        assert through(MODELS[found["kind"]], found) == found


def _check_keda(found: dict[str, Any]) -> None:
    assert found["apiVersion"] == "keda.sh/v1alpha1"
    spec = found["spec"]
    assert spec.keys() <= KEDA["spec"]
    assert spec["fallback"].keys() == KEDA["fallback"]
    assert spec["scaleTargetRef"].keys() <= KEDA["scaleTargetRef"]
    assert all(trigger.keys() <= KEDA["trigger"] for trigger in spec["triggers"])
    assert all(
        isinstance(value, str) for trigger in spec["triggers"] for value in trigger["metadata"].values()
    )
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert through("V2HorizontalPodAutoscalerBehavior", behavior) == behavior


def test_misspellings_are_found() -> None:
    """The check itself: a field that does not exist is one that is lost."""
    (account, role, _binding) = documents("rbac.yaml")
    assert account["kind"] == "ServiceAccount"
    role["rules"][0]["resourceName"] = ["vllm"]
    assert through("V1Role", role) != role


def test_rights() -> None:
    """get of the objects, get and update of their scale, list of pods; no wildcard, no write elsewhere."""
    _, role, binding = documents("rbac.yaml")
    for rule in role["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if all(resource.endswith("/scale") for resource in rule["resources"]):
            assert rule["verbs"] == ["get", "update"] and rule["resourceNames"]
        elif rule["resources"] == ["pods"]:
            assert rule["verbs"] == ["list"]
        else:
            assert rule["verbs"] == ["get"] and rule["resourceNames"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_the_metric_is_not_scaled() -> None:
    """One replica for each instance that kvwatt wants; no metric is never zero instances."""
    (scaled,) = documents("keda-scaledobject.yaml")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "1" and trigger["metricType"] == "AverageValue"
    assert "kvwatt_instances_desired" in trigger["metadata"]["query"]
    assert trigger["metadata"]["ignoreNullValues"] == "false" and scaled["spec"]["fallback"]["replicas"] >= 1
    hpa = documents("hpa.yaml")[0]
    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "kvwatt_instances_desired"
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert "replicas" not in documents("vllm-deployment.example.yaml")[0]["spec"]
