"""The pod on each node: least privilege, and manifests that fit each other and the program."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from manifests import FOLDER, documents

from kvwattd.config import parse_config
from kvwattd.guard.config import STATE_FILE

pytest.importorskip("yaml")


def _pod() -> dict[str, Any]:
    (found,) = documents("base/daemonset.yaml")
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def test_privilege() -> None:
    """One capability, of the guard; root beside it only changes an owner; no root file system is written."""
    pod = _pod()
    assert pod["automountServiceAccountToken"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "securityContext"}
    added = {}
    for container in pod["initContainers"] + pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and not context.get("privileged")
        assert context["capabilities"]["drop"] == ["ALL"]
        added[container["name"]] = context["capabilities"].get("add", [])
        if container["name"] in ("daemon", "tokens"):
            assert context["runAsUser"] == 8484 and context["allowPrivilegeEscalation"] is False
    assert added == {"tokens": [], "state": ["CHOWN"], "guard": ["SYS_ADMIN"], "daemon": []}


def test_mounts_and_volumes_fit() -> None:
    """Every mount has a volume and the reverse; the record outlives the pod; the socket does not leave it."""
    pod = _pod()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = [mount for one in pod["initContainers"] + pod["containers"] for mount in one["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == volumes.keys()
    guard, daemon = ({m["name"]: m["mountPath"] for m in one["volumeMounts"]} for one in pod["containers"])
    assert guard["socket"] == daemon["socket"] and "emptyDir" in volumes["socket"]
    assert volumes["record"]["hostPath"]["path"] == guard["record"] == str(Path(STATE_FILE).parent)
    assert "record" not in daemon and "locks" not in daemon
    (made,) = documents("base/kustomization.yaml")[0]["configMapGenerator"]
    assert volumes["config"]["configMap"]["name"] == made["name"]


def test_the_services_lead_to_what_they_name() -> None:
    """The configuration's URL is a service of the node's own vLLM, whose pods have its label and port."""
    own, local = documents("base/service.yaml")
    pod = documents("base/daemonset.yaml")[0]["spec"]["template"]
    assert own["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    config = parse_config(tomllib.loads((FOLDER / "base" / "kvwatt.toml").read_text()))
    (port,) = local["spec"]["ports"]
    assert config.instances[0].url == f"http://{local['metadata']['name']}:{port['port']}"
    assert local["spec"]["internalTrafficPolicy"] == "Local"
    served = documents("vllm-daemonset.example.yaml")[0]["spec"]["template"]
    assert local["spec"]["selector"].items() <= served["metadata"]["labels"].items()
    assert port["targetPort"] in [one["name"] for one in served["spec"]["containers"][0]["ports"]]
