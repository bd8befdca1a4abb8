"""Objects through the official client over real HTTP: whose pod goes, conflicts, refusals, silence."""

from __future__ import annotations

import asyncio
import sys
import threading
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
TIMEOUT_S = 60.0  # what only a dead machine needs
SILENCE_S = 1.0  # how long who is not answered at all waits
MEMBERS = "abc"
PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "LeaderWorkerSet": "leaderworkersets"}


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    made = FakeKubernetes()
    for plural in PLURALS.values():
        made.objects |= {(plural, f"vllm-{member}"): Object() for member in MEMBERS}
    yield made
    made.close()


@pytest.fixture
async def backend(cluster: FakeKubernetes, tmp_path: Path) -> AsyncIterator[KubernetesBackend]:
    made = make(cluster, tmp_path)
    yield made
    await made.close()


def make(
    cluster: FakeKubernetes, folder: Path, kind: str = "Deployment", timeout_s: float = TIMEOUT_S
) -> KubernetesBackend:
    api = KubeApi(cluster.kubeconfig(folder / "config"), timeout_s=timeout_s)
    loads = [Workload(kind, "ns", f"vllm-{member}", member) for member in MEMBERS]
    return KubernetesBackend(loads, api, deadline_s=2 * TIMEOUT_S)


async def states(backend: KubernetesBackend) -> list[BackendState]:
    found = await backend.states()
    return [found[member] for member in MEMBERS]


async def refused(call: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("kind", PLURALS)
async def test_up_and_down(cluster: FakeKubernetes, tmp_path: Path, kind: str) -> None:
    """Each kind: started twice it is one replica; ready, ending and gone are told apart."""
    backend = make(cluster, tmp_path, kind)
    found = cluster.objects[PLURALS[kind], "vllm-b"]
    assert await states(backend) == [STOPPED] * 3
    for _ in range(2):
        await backend.start("b")
    assert found.replicas == 1
    assert await states(backend) == [STOPPED, STARTING, STOPPED]
    found.pods = {"vllm-b-0": (False, False, "")}
    found.tell()
    assert await states(backend) == [STOPPED, STARTING, STOPPED]
    found.settle("vllm-b")
    assert await states(backend) == [STOPPED, RUNNING, STOPPED]
    for _ in range(2):
        await backend.stop("b")
    assert found.replicas == 0
    found.pods["vllm-b-0"] = (True, True, "")
    found.tell()
    assert await states(backend) == [STOPPED, STOPPING, STOPPED], "no longer counted, and still there"
    found.settle("vllm-b")
    assert await states(backend) == [STOPPED] * 3
    await backend.close()


@pytest.mark.parametrize("kind", PLURALS)
@pytest.mark.parametrize("chosen", MEMBERS)
async def test_only_the_pod_of_who_was_drained_goes(
    cluster: FakeKubernetes, tmp_path: Path, kind: str, chosen: str
) -> None:
    """Whichever member is stopped, its object alone is scaled; one that somebody gave more pods is left."""
    backend = make(cluster, tmp_path, kind)
    for member in MEMBERS:
        await backend.start(member)
    await backend.stop(chosen)
    replicas = {member: cluster.objects[PLURALS[kind], f"vllm-{member}"].replicas for member in MEMBERS}
    assert replicas == {member: int(member != chosen) for member in MEMBERS}
    await backend.start(chosen)
    cluster.objects[PLURALS[kind], f"vllm-{chosen}"].replicas = 2  # somebody else's doing
    error = await refused(backend.stop(chosen))
    assert error.cause == Cause.STATE and "2 replicas" in error.detail
    assert cluster.objects[PLURALS[kind], f"vllm-{chosen}"].replicas == 2
    await backend.close()


async def test_conflicts(cluster: FakeKubernetes, backend: KubernetesBackend) -> None:
    """Somebody else changes the object between our look and our change: looked at again; at last told."""
    found = cluster.objects["deployments", "vllm-a"]
    other = cluster.objects["deployments", "vllm-b"]
    changes = 2

    def meddle(method: str, path: str) -> None:
        nonlocal changes
        if method == "PUT" and changes > 0:
            changes -= 1
            found.version, other.version = found.version + 1, other.version + 1

    cluster.before = meddle
    await backend.start("a")
    assert found.replicas == 1 and changes == 0
    changes = 100
    assert (await refused(backend.start("b"))).cause == Cause.CONFLICT
    changes = 1

    def forestall(method: str, path: str) -> None:
        if method == "PUT" and other.replicas < 1:
            other.replicas, other.version = 1, other.version + 1

    cluster.before = forestall
    puts = sum(method == "PUT" for method, _ in cluster.asked)
    await backend.start("b")
    assert other.replicas == 1 and sum(method == "PUT" for method, _ in cluster.asked) == puts + 1


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
    ],
)
async def test_an_api_that_does_not_help(
    cluster: FakeKubernetes, backend: KubernetesBackend, answer: Any, cause: Cause
) -> None:
    """UNKNOWN with a reason, never STOPPED; orders fail with the cause; afterwards all is well again."""
    for member in "ab":
        await backend.start(member)
        cluster.objects["deployments", f"vllm-{member}"].settle(f"vllm-{member}")
    cluster.before = lambda method, path: answer
    assert await states(backend) == [UNKNOWN] * 3
    assert set(backend.reasons) == {"a", "b", "c"}
    assert (await refused(backend.start("c"))).cause == cause
    assert (await refused(backend.stop("b"))).cause == cause
    cluster.before = None
    assert cluster.objects["deployments", "vllm-b"].replicas == 1
    assert await states(backend) == [RUNNING, RUNNING, STOPPED]


async def test_an_api_that_is_silent(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """The same of one that answers nothing until the deadline; when it answers again, so is it told."""
    backend = make(cluster, tmp_path, timeout_s=SILENCE_S)
    over = threading.Event()

    def wait(method: str, path: str) -> tuple[int, Any]:
        over.wait(TIMEOUT_S)
        return 0, 0.0

    cluster.before = wait
    assert await states(backend) == [UNKNOWN] * 3
    assert set(backend.reasons) == {"a", "b", "c"}
    assert (await refused(backend.start("c"))).cause == Cause.DEADLINE
    assert (await refused(backend.stop("b"))).cause == Cause.DEADLINE
    cluster.before = None
    over.set()
    assert not any(found.replicas for found in cluster.objects.values())
    async with asyncio.timeout(TIMEOUT_S):
        while await states(backend) != [STOPPED] * 3:  # a busy machine may be silent once more
            pass
    await backend.close()


async def test_a_change_whose_answer_is_lost(cluster: FakeKubernetes, backend: KubernetesBackend) -> None:
    """Carried out, and the connection broke: told as not known, and doing it again changes nothing."""
    found = cluster.objects["deployments", "vllm-a"]

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
    for member in "ab":
        await backend.start(member)
    cluster.objects["deployments", "vllm-a"].settle("vllm-a")
    found = cluster.objects["deployments", "vllm-b"]
    found.pods = {"vllm-b-0": (False, False, "" if why == "deadline" else why)}
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
    loads = [Workload("Deployment", "ns", f"vllm-{member}", member) for member in "ab"]
    backend = KubernetesBackend(
        loads, KubeApi(cluster.kubeconfig(tmp_path / "c"), timeout_s=TIMEOUT_S), deadline_s=1.5
    )
    over = threading.Event()

    def hang(method: str, path: str) -> tuple[int, Any] | None:
        return (0, 0.0) if "/deployments/vllm-a" in path and over.wait(2 * TIMEOUT_S) else None

    cluster.before = hang
    async with asyncio.timeout(TIMEOUT_S):
        while (told := await backend.states())["b"] is UNKNOWN:  # not in time on a busy machine
            assert told["a"] is UNKNOWN
    assert told == {"a": UNKNOWN, "b": STOPPED}
    over.set()
    await backend.close()


async def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kubeconfig, or no client library: UNKNOWN with what to do, and no crash."""
    one = KubernetesBackend([Workload("Deployment", "ns", "vllm", "a")], KubeApi(tmp_path / "nonesuch"))
    assert await one.states() == {"a": UNKNOWN}
    assert "kubeconfig" in one.reasons["a"]
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    monkeypatch.setitem(sys.modules, "kubernetes.client.exceptions", None)
    assert await one.states() == {"a": UNKNOWN}
    assert "kvwatt[kubernetes]" in one.reasons["a"]
    await one.close()


async def test_refusals(cluster: FakeKubernetes, tmp_path: Path, backend: KubernetesBackend) -> None:
    """Kinds that cannot be scaled, members or objects named twice, and sleep."""
    api = KubeApi(cluster.kubeconfig(tmp_path / "c"))
    one = Workload("Deployment", "ns", "x", "a")
    for loads, words in (
        ([Workload("DaemonSet", "ns", "x", "a")], "accepted"),
        ([one, Workload("Deployment", "ns", "y", "a")], "already"),
        ([one, Workload("Deployment", "ns", "x", "b")], "each needs its own"),
    ):
        with pytest.raises(ValueError, match=words):
            KubernetesBackend(loads, api)
    assert (await refused(backend.start("z"))).cause == Cause.UNKNOWN_MEMBER
    assert (await refused(backend.sleep("a", Withdrawn("a", "test", 0.0)))).cause == Cause.UNSUPPORTED
    assert (await refused(backend.wake("a"))).cause == Cause.UNSUPPORTED
