"""Replicas through the official client over real HTTP: order, limits, conflicts, refusals, silence."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_kubernetes import FakeKubernetes, Object, status

from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.kubernetes import KubernetesBackend, Workload
from kvwattd.instances.kubernetes_api import KubeApi

pytest.importorskip("kubernetes.client", reason="the extra kubernetes is not installed")

STOPPED, STARTING, RUNNING = BackendState.STOPPED, BackendState.STARTING, BackendState.RUNNING
STOPPING, FAILED, UNKNOWN = BackendState.STOPPING, BackendState.FAILED, BackendState.UNKNOWN
TIMEOUT_S = 2.0  # enough on a busy machine
PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "LeaderWorkerSet": "leaderworkersets"}


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    made = FakeKubernetes()
    for plural in PLURALS.values():
        made.objects[plural, "vllm"] = Object()
    yield made
    made.close()


@pytest.fixture
async def backend(cluster: FakeKubernetes, tmp_path: Path) -> AsyncIterator[KubernetesBackend]:
    made = make(cluster, tmp_path)
    yield made
    await made.close()


def make(
    cluster: FakeKubernetes, folder: Path, kind: str = "Deployment", minimum: int = 0
) -> KubernetesBackend:
    api = KubeApi(cluster.kubeconfig(folder / "config"), timeout_s=TIMEOUT_S)
    return KubernetesBackend([Workload(kind, "ns", "vllm", ("a", "b", "c"), minimum)], api, deadline_s=60.0)


async def states(backend: KubernetesBackend) -> list[BackendState]:
    found = await backend.states()
    return [found[member] for member in "abc"]


async def refused(call: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("kind", PLURALS)
async def test_up_and_down(cluster: FakeKubernetes, tmp_path: Path, kind: str) -> None:
    """Each kind: started twice it is one replica; ready, ending and gone are told apart."""
    backend = make(cluster, tmp_path, kind)
    found = cluster.objects[PLURALS[kind], "vllm"]
    assert await states(backend) == [STOPPED] * 3
    for _ in range(2):
        await backend.start("a")
    assert found.replicas == 1
    assert await states(backend) == [STARTING, STOPPED, STOPPED]
    await backend.start("b")
    found.pods = {"vllm-0": (True, False, ""), "vllm-1": (False, False, "")}
    found.tell()
    assert await states(backend) == [RUNNING, STARTING, STOPPED], "ready in part"
    found.settle("vllm")
    assert await states(backend) == [RUNNING, RUNNING, STOPPED]
    for _ in range(2):
        await backend.stop("b")
    assert found.replicas == 1
    found.pods["vllm-1"] = (True, True, "")
    found.tell()
    assert await states(backend) == [RUNNING, STOPPING, STOPPED], "no longer counted, and still there"
    found.settle("vllm")
    assert await states(backend) == [RUNNING, STOPPED, STOPPED]
    await backend.close()


async def test_in_order_and_within_limits(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """Only the next may be started and only the last stopped, and never fewer than the minimum."""
    backend = make(cluster, tmp_path, minimum=1)
    found = cluster.objects["deployments", "vllm"]
    error = await refused(backend.start("b"))
    assert error.cause == Cause.STATE and "before a" in error.detail
    for member in "abc":
        await backend.start(member)
    error = await refused(backend.stop("a"))
    assert error.cause == Cause.STATE and "at least 1" in error.detail
    error = await refused(backend.stop("b"))
    assert error.cause == Cause.STATE and "before c" in error.detail
    assert found.replicas == 3
    found.replicas = 5  # somebody else's doing
    assert "nobody's" in (await refused(backend.stop("c"))).detail
    await backend.close()


async def test_conflicts(cluster: FakeKubernetes, backend: KubernetesBackend) -> None:
    """Somebody else changes the object between our look and our change: looked at again; at last told."""
    found = cluster.objects["deployments", "vllm"]
    changes = 2

    def meddle(method: str, path: str) -> None:
        nonlocal changes
        if method == "PUT" and changes > 0:
            changes -= 1
            found.version += 1

    cluster.before = meddle
    await backend.start("a")
    assert found.replicas == 1 and changes == 0
    changes = 100
    assert (await refused(backend.start("b"))).cause == Cause.CONFLICT
    changes = 1

    def forestall(method: str, path: str) -> None:
        if method == "PUT" and found.replicas < 2:
            found.replicas, found.version = 2, found.version + 1

    cluster.before = forestall
    puts = sum(method == "PUT" for method, _ in cluster.asked)
    await backend.start("b")
    assert found.replicas == 2 and sum(method == "PUT" for method, _ in cluster.asked) == puts + 1


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (status(401, "Unauthorized"), Cause.FORBIDDEN),
        (status(403, "Forbidden"), Cause.FORBIDDEN),
        (status(404, "NotFound"), Cause.UNKNOWN_MEMBER),
        (status(429, "TooManyRequests"), Cause.UNREACHABLE),
        (status(500, "InternalError"), Cause.UNREACHABLE),
        (status(503, "ServiceUnavailable"), Cause.UNREACHABLE),
        (status(422, "Invalid"), Cause.FAILED),
        ((200, b"<html>"), Cause.FAILED),
        ((200, []), Cause.FAILED),
        ((200, {}), Cause.FAILED),
        ((200, {"metadata": {"resourceVersion": "1"}, "spec": {"replicas": -1}}), Cause.FAILED),
        ((200, {"metadata": {"resourceVersion": "1"}, "spec": {"replicas": "2"}}), Cause.FAILED),
        ((0, 0.0), Cause.UNREACHABLE),
        ((0, 2 * TIMEOUT_S), Cause.DEADLINE),
    ],
)
async def test_an_api_that_does_not_help(
    cluster: FakeKubernetes, backend: KubernetesBackend, answer: Any, cause: Cause
) -> None:
    """UNKNOWN with a reason, never STOPPED; orders fail with the cause; afterwards all is well again."""
    cluster.objects["deployments", "vllm"].replicas = 2
    cluster.objects["deployments", "vllm"].settle("vllm")
    cluster.before = lambda method, path: answer
    assert await states(backend) == [UNKNOWN] * 3
    assert set(backend.reasons) == {"a", "b", "c"}
    assert (await refused(backend.start("c"))).cause == cause
    assert (await refused(backend.stop("b"))).cause == cause
    cluster.before = None
    assert cluster.objects["deployments", "vllm"].replicas == 2
    assert await states(backend) == [RUNNING, RUNNING, STOPPED]


async def test_a_change_whose_answer_is_lost(cluster: FakeKubernetes, backend: KubernetesBackend) -> None:
    """Carried out, and the connection broke: told as not known, and doing it again changes nothing."""
    found = cluster.objects["deployments", "vllm"]

    def lose(method: str, path: str) -> tuple[int, Any] | None:
        if method == "PUT":
            found.replicas, found.version = 1, found.version + 1
            return 0, 0.0
        return None

    cluster.before = lose
    assert (await refused(backend.start("a"))).cause == Cause.UNREACHABLE
    cluster.before = None
    await backend.start("a")
    assert found.replicas == 1


async def test_forbidden_pods(cluster: FakeKubernetes, backend: KubernetesBackend) -> None:
    """Without the right to list pods it cannot be told what is still there: UNKNOWN."""
    cluster.before = lambda method, path: status(403, "Forbidden") if "/pods" in path else None
    assert await states(backend) == [UNKNOWN] * 3


@pytest.mark.parametrize("why", ["CrashLoopBackOff", "ImagePullBackOff", "deadline"])
async def test_replicas_that_do_not_come(
    cluster: FakeKubernetes, backend: KubernetesBackend, why: str
) -> None:
    """FAILED with Kubernetes' own word for it; those that are ready stay so."""
    found = cluster.objects["deployments", "vllm"]
    found.replicas = 2
    found.pods = {"vllm-0": (True, False, ""), "vllm-1": (False, False, "" if why == "deadline" else why)}
    found.tell()
    if why == "deadline":
        condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
        found.status["conditions"] = [condition]
    assert await states(backend) == [RUNNING, FAILED, STOPPED]
    assert (
        set(backend.reasons) == {"b"} and ("Deadline" if why == "deadline" else why) in backend.reasons["b"]
    )


async def test_one_object_that_hangs(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """The members of the others are told in time."""
    cluster.objects["deployments", "other"] = Object()
    loads = [Workload("Deployment", "ns", "vllm", ("a",)), Workload("Deployment", "ns", "other", ("b",))]
    backend = KubernetesBackend(
        loads, KubeApi(cluster.kubeconfig(tmp_path / "c"), timeout_s=5.0), deadline_s=0.5
    )
    cluster.before = lambda method, path: (0, 1.0) if "/deployments/vllm" in path else None
    async with asyncio.timeout(10):
        assert await backend.states() == {"a": UNKNOWN, "b": STOPPED}
    await backend.close()


async def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kubeconfig, or no client library: UNKNOWN with what to do, and no crash."""
    one = KubernetesBackend([Workload("Deployment", "ns", "vllm", ("a",))], KubeApi(tmp_path / "nonesuch"))
    assert await one.states() == {"a": UNKNOWN}
    assert "kubeconfig" in one.reasons["a"]
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    monkeypatch.setitem(sys.modules, "kubernetes.client.exceptions", None)
    assert await one.states() == {"a": UNKNOWN}
    assert "kvwatt[kubernetes]" in one.reasons["a"]
    await one.close()


async def test_refusals(cluster: FakeKubernetes, tmp_path: Path, backend: KubernetesBackend) -> None:
    """Kinds that cannot be scaled, members named twice, a minimum that cannot be, and sleep."""
    api = KubeApi(cluster.kubeconfig(tmp_path / "c"))
    for loads, words in (
        ([Workload("DaemonSet", "ns", "x", ("a",))], "accepted"),
        ([Workload("Deployment", "ns", "x", ("a",)), Workload("Deployment", "ns", "y", ("a",))], "already"),
        ([Workload("Deployment", "ns", "x", ("a",), minimum=2)], "0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            KubernetesBackend(loads, api)
    assert (await refused(backend.start("z"))).cause == Cause.UNKNOWN_MEMBER
    assert (await refused(backend.sleep("a", Withdrawn("a", "test", 0.0)))).cause == Cause.UNSUPPORTED
    assert (await refused(backend.wake("a"))).cause == Cause.UNSUPPORTED
