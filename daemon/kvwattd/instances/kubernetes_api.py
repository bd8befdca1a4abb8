"""The few calls of the Kubernetes API that scaling needs, through the official client. Blocking.

The client is imported when the first call is made (extra `kubernetes`).
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kvwattd.instances.backend import BackendError, Cause

Untyped = Any  # the client's modules and answers

# Kind -> group, version and plural: all three have the scale subresource.
KINDS = {
    "Deployment": ("apps", "v1", "deployments"),
    "StatefulSet": ("apps", "v1", "statefulsets"),
    "LeaderWorkerSet": ("leaderworkerset.x-k8s.io", "v1", "leaderworkersets"),
}
_CAUSES: Mapping[int, Cause] = {
    HTTPStatus.UNAUTHORIZED: Cause.FORBIDDEN,
    HTTPStatus.FORBIDDEN: Cause.FORBIDDEN,
    HTTPStatus.NOT_FOUND: Cause.UNKNOWN_MEMBER,
    HTTPStatus.CONFLICT: Cause.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS: Cause.UNREACHABLE,
}


@dataclass(frozen=True, slots=True)
class Target:
    """One scalable object."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Scale:
    """`spec.replicas`, the version that a change must be based on, and the pods that count."""

    replicas: int
    resource_version: str
    selector: str


class KubeApi:
    """Inside a cluster by its service account, else by a kubeconfig file.

    Args:
        kubeconfig: None: the service account where there is one, else the client's default file.
        context: of the kubeconfig; None: its current one.
        timeout_s: to connect, and between two reads.
    """

    def __init__(
        self, kubeconfig: Path | None = None, context: str | None = None, timeout_s: float = 3.0
    ) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._timeout_s = timeout_s
        self._client: Any = None
        self._connecting = threading.Lock()  # each object is asked for from a thread of its own

    def read(self, target: Target) -> Mapping[str, Any]:
        """The whole object, for its status. Raises BackendError."""
        return self._mapping(
            target, lambda: self._objects().get_namespaced_custom_object(*_path(target), **self._limits)
        )

    def scale(self, target: Target) -> Scale:
        """Raises BackendError."""
        found = self._mapping(
            target, lambda: self._objects().get_namespaced_custom_object_scale(*_path(target), **self._limits)
        )
        version = _part(found, "metadata").get("resourceVersion")
        selector = _part(found, "status").get("selector", "")
        if not isinstance(version, str) or not isinstance(selector, str):
            raise BackendError(Cause.FAILED, f"{target}: its scale has no resourceVersion or no selector")
        return Scale(count(_part(found, "spec"), "replicas", target), version, selector)

    def set_scale(self, target: Target, replicas: int, resource_version: str) -> None:
        """Raises BackendError, with cause `conflict` where the object has changed since."""
        group, version, namespace, plural, name = _path(target)
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": name, "namespace": namespace, "resourceVersion": resource_version},
            "spec": {"replicas": replicas},
        }
        self._run(
            target,
            lambda: self._objects().replace_namespaced_custom_object_scale(
                group, version, namespace, plural, name, body, **self._limits
            ),
        )

    def pods(self, target: Target, selector: str) -> list[Mapping[str, Any]]:
        """Those that count as replicas (of a LeaderWorkerSet: the leaders). Raises BackendError."""
        found = self._run(
            target,
            lambda: self._core().list_namespaced_pod(
                target.namespace, label_selector=selector, _preload_content=False, **self._limits
            ),
        )
        items = self._json(target, found).get("items")
        if not isinstance(items, list):
            raise BackendError(Cause.FAILED, f"{target}: the list of its pods is no list")
        return [item for item in items if isinstance(item, dict)]

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def _limits(self) -> dict[str, Any]:
        return {"_request_timeout": (self._timeout_s, self._timeout_s)}

    def _objects(self) -> Untyped:
        return self._module("client").CustomObjectsApi(self._connected())

    def _core(self) -> Untyped:
        return self._module("client").CoreV1Api(self._connected())

    def _connected(self) -> Untyped:
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Untyped:
        client, config = self._module("client"), self._module("config")
        settings = client.Configuration()
        try:
            if self._kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config(client_configuration=settings)
            else:
                path = str(self._kubeconfig) if self._kubeconfig else None
                config.load_kube_config(path, context=self._context, client_configuration=settings)
        except (config.ConfigException, OSError, ValueError, TypeError) as error:
            raise BackendError(Cause.UNREACHABLE, f"kubeconfig: {error}") from None
        settings.retries = False  # a call that hangs must not hang three times
        return client.ApiClient(settings)

    @staticmethod
    def _module(name: str) -> Untyped:
        try:
            return importlib.import_module(f"kubernetes.{name}")
        except ImportError:
            told = "the kubernetes backend needs the extra: pip install 'kvwatt[kubernetes]'"
            raise BackendError(Cause.UNSUPPORTED, told) from None

    def _mapping(self, target: Target, call: Callable[[], Untyped]) -> Mapping[str, Any]:
        found = self._run(target, call)
        if not isinstance(found, dict):
            raise BackendError(Cause.FAILED, f"{target}: the answer is no object")
        return found

    def _json(self, target: Target, response: Untyped) -> Mapping[str, Any]:
        try:
            found = json.loads(response.data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BackendError(Cause.FAILED, f"{target}: the answer is no object")
        return found

    def _run(self, target: Target, call: Callable[[], Untyped]) -> Untyped:
        exceptions, urllib3 = self._module("client.exceptions"), importlib.import_module("urllib3")
        try:
            return call()
        except exceptions.ApiException as error:
            status = error.status or 0
            cause = _CAUSES.get(status, Cause.UNREACHABLE if status >= 500 else Cause.FAILED)
            raise BackendError(cause, f"{target}: HTTP {status} {error.reason or ''}".rstrip()) from None
        except (urllib3.exceptions.TimeoutError, TimeoutError):
            raise BackendError(Cause.DEADLINE, f"{target}: no answer within {self._timeout_s:g} s") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BackendError(Cause.UNREACHABLE, f"{target}: {type(error).__name__}") from None
        except ValueError as error:
            raise BackendError(Cause.FAILED, f"{target}: {error}") from None


def count(found: Mapping[str, Any], key: str, target: Target) -> int:
    """A number of replicas; left out means 0, as the API does. Raises BackendError."""
    value = found.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BackendError(Cause.FAILED, f"{target}: {key} = {value!r}: a whole number >= 0 is expected")
    return value


def _part(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = found.get(key)
    return part if isinstance(part, dict) else {}


def _path(target: Target) -> tuple[str, str, str, str, str]:
    group, version, plural = KINDS[target.kind]
    return group, version, target.namespace, plural, target.name
