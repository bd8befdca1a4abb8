"""What an object and its pods say about its replica. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvwattd.instances.backend import BackendState
from kvwattd.instances.kubernetes_api import Target, count

# A container that waits for one of these comes up by itself only if somebody changes something.
_STUCK = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
_OVER = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at one object.

    Args:
        desired: replicas asked for.
        ready: replicas that are ready.
        present: replicas that exist in any way, those that are ending included.
        stuck: why replicas that are not ready will not be; empty: they may.
    """

    desired: int
    ready: int
    present: int
    stuck: str


def see(target: Target, found: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> Seen:
    """Raises BackendError where a number cannot be one."""
    status = _part(found, "status")
    there = [pod for pod in pods if _part(pod, "status").get("phase") not in _OVER]
    return Seen(
        desired=count(_part(found, "spec"), "replicas", target),
        ready=count(status, "readyReplicas", target),
        present=max(count(status, "replicas", target), len(there)),
        stuck=_stuck(status, there),
    )


def state_of(seen: Seen) -> BackendState:
    """Of the one replica. Of several (somebody else raised them) all must be ready."""
    if seen.desired == 0:
        return BackendState.STOPPING if seen.present else BackendState.STOPPED
    if seen.ready >= seen.desired:
        return BackendState.RUNNING
    return BackendState.FAILED if seen.stuck else BackendState.STARTING


def _stuck(status: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> str:
    for condition in _list(status, "conditions"):
        if condition.get("reason") == "ProgressDeadlineExceeded" and condition.get("status") == "False":
            return "ProgressDeadlineExceeded"
    for pod in pods:
        for container in _list(_part(pod, "status"), "containerStatuses"):
            reason = _part(_part(container, "state"), "waiting").get("reason")
            if reason in _STUCK:
                return f"pod {_part(pod, 'metadata').get('name', '?')}: {reason}"
    return ""


def _part(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = found.get(key)
    return part if isinstance(part, dict) else {}


def _list(found: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    part = found.get(key)
    return [item for item in part if isinstance(item, dict)] if isinstance(part, list) else []
