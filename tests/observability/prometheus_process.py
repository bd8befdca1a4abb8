"""A real Prometheus for tests: scrapes what it is told, with the shipped rules, and answers queries."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

from debian_packages import NoProgramError, find  # see above

from kvwatt_sim.ports import free_ports

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
EXAMPLE = (SHIPPED / "prometheus.example.yml").read_text(encoding="utf-8")
PATIENCE_S = 90.0


def program(name: str) -> str:
    """`prometheus` or `promtool`. Skips the test where it is neither installed nor to be had."""
    try:
        return find(name, ["prometheus"])[0]
    except NoProgramError as error:
        pytest.skip(str(error))


def configuration(target: str, period_s: int = 1) -> str:
    """The shipped example with another target, looked at every second; the rules where they are shipped."""
    text = EXAMPLE.replace("127.0.0.1:8484", target).replace("15s", f"{period_s}s")
    text = text.replace("- kvwatt.", f"- {SHIPPED}/kvwatt.")
    assert target in text and f"{period_s}s" in text and str(SHIPPED) in text, "the example has changed"
    return text


class Prometheus:
    """Runs until the end of the block; data in `folder`."""

    def __init__(self, folder: Path, target: str) -> None:
        self._program = program("prometheus")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        (folder / "prometheus.yml").write_text(configuration(target), encoding="utf-8")

    def __enter__(self) -> Self:
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={self._folder}/prometheus.yml",
                    f"--storage.tsdb.path={self._folder}/data",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "GOMAXPROCS": "1"},
            )
        try:
            self._ready()
        except BaseException:
            self._stop()
            raise
        return self

    def _ready(self) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > until_s:
                told = (self._folder / "prometheus.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"Prometheus does not answer: {told}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False, timeout=PATIENCE_S).status_code == 200
        except httpx.HTTPError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        assert self._process is not None
        self._process.kill()  # its data is thrown away
        self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query. Raises AssertionError where it is refused."""
        answer = self._get("query", {"query": expression})
        return list(answer["result"])

    def label_values(self, label: str, selector: str) -> list[str]:
        """What a variable of Grafana's dashboard is filled with."""
        return list(self._get(f"label/{label}/values", {"match[]": selector}))

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health and last error."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def _get(self, what: str, parameters: Mapping[str, str]) -> Any:
        answer = httpx.get(
            f"{self.url}/api/v1/{what}", params=parameters, trust_env=False, timeout=PATIENCE_S
        )
        document = answer.json()
        assert document["status"] == "success", f"{what} {parameters}: {document.get('error')}"
        return document["data"]
