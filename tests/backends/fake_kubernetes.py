"""A small Kubernetes API server: three kinds with their scale subresource, pods, and a controller by hand.

As the real one: a change of the scale must be based on the newest resourceVersion (409 else), zeros are
left out of answers, errors are Status objects, and replicas follow when the controller acts, not before.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OBJECT = re.compile(
    r"/apis/(?P<group>[^/]+)/v1/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)/(?P<name>[^/?]+)(?P<scale>/scale)?$"
)
PODS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods\?labelSelector=(?P<selector>[^&]+)")
GROUPS = {"deployments": "apps", "statefulsets": "apps", "leaderworkersets": "leaderworkerset.x-k8s.io"}


@dataclass
class Object:
    """One scalable object and its pods: name -> (ready, ending, why it waits)."""

    replicas: int = 0
    version: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    pods: dict[str, tuple[bool, bool, str]] = field(default_factory=dict)

    def settle(self, name: str) -> None:
        """What the controllers bring about in the end."""
        self.pods = {f"{name}-{index}": (True, False, "") for index in range(self.replicas)}
        self.tell()

    def tell(self) -> None:
        live = [ready for ready, ending, _ in self.pods.values() if not ending]
        numbers = {"replicas": len(live), "readyReplicas": sum(live)}
        self.status = {key: value for key, value in numbers.items() if value}


class FakeKubernetes:
    """Listens on 127.0.0.1. `before` is called with method and path, and may answer in its place."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[str, str], tuple[int, Any] | None] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def kubeconfig(self, path: Path) -> Path:
        """How to get there, as kubectl would be told (JSON is YAML)."""
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "k", "cluster": {"server": url}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                }
            )
        )
        return path

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((method, path))
        if self.before is not None and (found := self.before(method, path)) is not None:
            return found
        if (pods := PODS.match(path)) is not None:
            name = pods["selector"].removeprefix("app%3D")
            items = [
                pod(*item)
                for (_, of), found in self.objects.items()
                if of == name
                for item in found.pods.items()
            ]
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": items}
        match = OBJECT.match(path)
        key = (match["plural"], match["name"]) if match else ("", "")
        if match is None or key not in self.objects or GROUPS.get(match["plural"]) != match["group"]:
            return status(404, "NotFound")
        return self._object(method, match, self.objects[key], body)

    def _object(self, method: str, match: re.Match[str], found: Object, body: Any) -> tuple[int, Any]:
        metadata = {
            "name": match["name"],
            "namespace": match["namespace"],
            "resourceVersion": str(found.version),
        }
        if match["scale"] and method == "PUT":
            if body["metadata"]["resourceVersion"] != str(found.version):
                return status(409, "Conflict")
            found.replicas, found.version = body["spec"].get("replicas", 0), found.version + 1
        elif method != "GET":
            return status(405, "MethodNotAllowed")
        spec = {"replicas": found.replicas} if found.replicas else {}
        if match["scale"]:
            selector = {"selector": f"app={match['name']}", "replicas": len(found.pods)}
            return 200, {"kind": "Scale", "metadata": metadata, "spec": spec, "status": selector}
        return 200, {"metadata": metadata, "spec": spec, "status": found.status}


def status(code: int, reason: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "code": code}


def pod(name: str, what: tuple[bool, bool, str]) -> dict[str, Any]:
    ready, ending, why = what
    waiting = {"waiting": {"reason": why}} if why else {"running": {}}
    ended = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if ending else {}
    return {
        "metadata": {"name": name, **ended},
        "status": {"phase": "Running", "containerStatuses": [{"ready": ready, "state": waiting}]},
    }


def _handler(cluster: FakeKubernetes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            code, answer = cluster.answer(self.command, self.path, body)
            if code == 0:  # no answer at all, after a while
                time.sleep(float(answer))
                self.close_connection = True
                return
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_GET  # noqa: N815  # http.server's name

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
