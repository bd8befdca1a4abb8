"""The shipped manifests: every field known to the API's models, and rights for what is called only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifests import FOLDER, documents

client = pytest.importorskip("kubernetes.client", reason="the extra kubernetes is not installed")
pytest.importorskip("yaml")

MODELS = {
    "ConfigMap": "V1ConfigMap",
    "DaemonSet": "V1DaemonSet",
    "Deployment": "V1Deployment",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "NetworkPolicy": "V1NetworkPolicy",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "Service": "V1Service",
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
# Of the definitions of ServiceMonitor and Kustomization, what the shipped ones use.
ENDPOINT = {
    "port": str,
    "scheme": str,
    "path": str,
    "interval": str,
    "honorLabels": bool,
    "authorization": dict,
    "tlsConfig": dict,
    "relabelings": list,
}
KUSTOMIZATION = {"apiVersion", "kind", "resources", "configMapGenerator", "images"}


def through(model: str, found: object) -> object:
    """What is left of it after the API's model has read it: unknown fields are lost, wrong types fail."""
    api = client.ApiClient()
    return api.sanitize_for_serialization(api._ApiClient__deserialize(found, model))


NAMES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml"))
ALL = [(name, found) for name in NAMES for found in documents(name)]


@pytest.mark.parametrize(("name", "found"), ALL, ids=[f"{name}-{found['kind']}" for name, found in ALL])
def test_every_field_is_known(name: str, found: dict[str, Any]) -> None:
    """Nothing is misspelt, misplaced or of a wrong type."""
    if found["kind"] == "ScaledObject":
        _check_keda(found)
    elif found["kind"] == "ServiceMonitor":
        _check_monitor(found)
    elif found["kind"] == "Kustomization":
        _check_kustomization(FOLDER / name, found)
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


def _check_monitor(found: dict[str, Any]) -> None:
    assert found["apiVersion"] == "monitoring.coreos.com/v1"
    assert found["spec"].keys() == {"selector", "endpoints"}
    (endpoint,) = found["spec"]["endpoints"]
    assert all(isinstance(value, ENDPOINT[key]) for key, value in endpoint.items())
    service = documents("base/service.yaml")[0]
    assert found["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["honorLabels"] is True and endpoint["scheme"] == "https"


def _check_kustomization(path: Path, found: dict[str, Any]) -> None:
    assert found["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    assert found.keys() <= KUSTOMIZATION
    for resource in found["resources"]:
        place = path.parent / resource
        assert place.is_file() or (place / "kustomization.yaml").is_file()
    for made in found.get("configMapGenerator", []):
        assert all((path.parent / file).is_file() for file in made["files"])


def test_misspellings_are_found() -> None:
    """The check itself: a field that does not exist is one that is lost."""
    (role, _binding) = documents("scaling/rbac.yaml")
    role["rules"][0]["resourceName"] = ["vllm"]
    assert through("V1Role", role) != role


def test_rights() -> None:
    """get of the objects, get and update of their scale, list of pods; no wildcard, no write elsewhere."""
    role, binding = documents("scaling/rbac.yaml")
    for rule in role["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if all(resource.endswith("/scale") for resource in rule["resources"]):
            assert rule["verbs"] == ["get", "update"] and rule["resourceNames"]
        elif rule["resources"] == ["pods"]:
            assert rule["verbs"] == ["list"]
        else:
            assert rule["verbs"] == ["get"] and rule["resourceNames"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (account,) = documents("base/serviceaccount.yaml")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    kinds = {"Deployment": "deployments", "StatefulSet": "statefulsets"}
    for found in documents("scaling/vllm-instances.example.yaml"):
        if found["kind"] in kinds:
            rule = next(rule for rule in role["rules"] if kinds[found["kind"]] in rule["resources"])
            assert found["metadata"]["name"] in rule["resourceNames"]


def test_the_metric_is_not_scaled() -> None:
    """One replica for each instance that kvwatt wants; no metric is never zero instances."""
    (scaled,) = documents("scaling/keda-scaledobject.yaml")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "1" and trigger["metricType"] == "AverageValue"
    assert "kvwatt_instances_desired" in trigger["metadata"]["query"]
    assert trigger["metadata"]["ignoreNullValues"] == "false" and scaled["spec"]["fallback"]["replicas"] >= 1
    hpa = documents("scaling/hpa.yaml")[0]
    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "kvwatt_instances_desired"
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert "replicas" not in documents("scaling/vllm-deployment.example.yaml")[0]["spec"]
