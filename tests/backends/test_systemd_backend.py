"""The systemd backend against a systemctl that fails in every way; the real one is in tests/systemd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.systemd import SystemdBackend, judge

# Answers `show` with the file `state` beside it; any other verb with the file `verb`, or success.
FAKE = """#!/bin/sh
cd "$(dirname "$0")" || exit 9
echo "$@" >>calls
for word in "$@"; do case $word in
    show) if [ -e show ]; then . ./show; else cat state; fi; exit ;;
    start|stop|reset-failed) if [ -e "$word" ]; then . "./$word"; fi; exit ;;
esac; done
"""
UNIT = (
    "Id=vllm@{}.service\nLoadState={}\nActiveState={}\nSubState={}\nResult=success\nJob={}\nControlGroup=\n"
)


class Fake:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = (str(folder / "systemctl"),)
        (folder / "systemctl").write_text(FAKE)
        (folder / "systemctl").chmod(0o755)
        self.units()

    def units(self, active: str = "inactive", load: str = "loaded", sub: str = "dead", job: str = "") -> None:
        (self.folder / "state").write_text(
            "\n".join(UNIT.format(name, load, active, sub, job) for name in "ab")
        )

    def does(self, verb: str, script: str) -> None:
        (self.folder / verb).write_text(script)

    def verbs(self) -> list[str]:
        words = (self.folder / "calls").read_text().split()
        return [word for word in words if word in ("start", "stop", "reset-failed")]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def backend(fake: Fake, deadline_s: float = 60.0) -> SystemdBackend:
    return SystemdBackend("ab", command=fake.command, deadline_s=deadline_s)


async def refused(call: object) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await call  # type: ignore[misc]
    return caught.value


@pytest.mark.parametrize(
    ("active", "load", "sub", "job", "state"),
    [
        ("inactive", "loaded", "dead", "", BackendState.STOPPED),
        ("inactive", "loaded", "dead", "0", BackendState.STOPPED),
        ("inactive", "loaded", "dead", "17", BackendState.STARTING),
        ("inactive", "not-found", "dead", "", BackendState.FAILED),
        ("inactive", "masked", "dead", "", BackendState.FAILED),
        ("activating", "loaded", "start", "17", BackendState.STARTING),
        ("activating", "loaded", "auto-restart", "", BackendState.FAILED),
        ("active", "loaded", "running", "", BackendState.RUNNING),
        ("active", "not-found", "running", "", BackendState.RUNNING),
        ("reloading", "loaded", "reload", "", BackendState.RUNNING),
        ("deactivating", "loaded", "stop-sigterm", "18", BackendState.STOPPING),
        ("failed", "loaded", "failed", "", BackendState.FAILED),
        ("maintenance", "loaded", "dead", "", BackendState.FAILED),
        ("sideways", "loaded", "dead", "", BackendState.UNKNOWN),
        ("", "", "", "", BackendState.UNKNOWN),
    ],
)
def test_states(active: str, load: str, sub: str, job: str, state: BackendState) -> None:
    """Every state of a unit; words of a later systemd are UNKNOWN."""
    found, reason = judge({"ActiveState": active, "LoadState": load, "SubState": sub, "Job": job})
    assert found is state
    assert bool(reason) == (state in (BackendState.FAILED, BackendState.UNKNOWN))


@pytest.mark.parametrize(
    "script",
    [
        "sleep 99",
        "exit 1",
        "echo 'Failed to connect to bus' >&2; exit 1",
        "echo nonsense",
        "kill -9 $$",
        ":",
    ],
)
async def test_systemd_that_does_not_answer(fake: Fake, script: str) -> None:
    """UNKNOWN for every member, with a reason; a start is not tried blindly."""
    fake.does("show", script)
    one = backend(fake, 1.0) if "sleep" in script else backend(fake)
    assert set((await one.states()).values()) == {BackendState.UNKNOWN}
    assert set(one.reasons) == {"a", "b"}
    if script not in ("echo nonsense", ":"):
        assert isinstance(await refused(one.start("a")), BackendError)
        assert fake.verbs() == []
    (fake.folder / "show").unlink()
    async with asyncio.timeout(60.0):
        while set((await one.states()).values()) != {BackendState.STOPPED}:
            assert "sleep" in script, "of the others none is late"


async def test_no_systemctl(tmp_path: Path) -> None:
    """A program that is not there is no systemd that is down."""
    one = SystemdBackend("a", command=[str(tmp_path / "nonesuch")])
    assert await one.states() == {"a": BackendState.UNKNOWN}
    assert (await refused(one.stop("a"))).cause == Cause.UNREACHABLE


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Failed to start vllm@a.service: Access denied", Cause.FORBIDDEN),
        ("Failed to start vllm@a.service: Interactive authentication required.", Cause.FORBIDDEN),
        ("Failed to start vllm@a.service: Unit vllm@a.service not found.", Cause.UNKNOWN_MEMBER),
        ("Failed to start vllm@a.service: Connection timed out", Cause.UNREACHABLE),
        ("Job for vllm@a.service failed because the control process exited", Cause.FAILED),
    ],
)
async def test_what_systemctl_says(fake: Fake, said: str, cause: Cause) -> None:
    """Its words become a cause, and stay in the detail."""
    fake.does("start", f"echo '{said}' >&2; exit 1")
    error = await refused(backend(fake).start("a"))
    assert error.cause == cause and said in error.detail


async def test_a_slow_start(fake: Fake) -> None:
    """Past the deadline it was accepted where the unit activates, and is refused where it does not."""
    fake.does("start", "sed -i s/=inactive/=activating/ state; sleep 600")
    await backend(fake, 4.0).start("a")
    fake.units()
    fake.does("start", "sleep 600")
    assert (await refused(backend(fake, 0.5).start("a"))).cause == Cause.DEADLINE


async def test_only_what_is_needed(fake: Fake) -> None:
    """What runs is not started, what is down or on its way down not stopped; a failure is reset."""
    one = backend(fake)
    await one.stop("a")
    fake.units("active", sub="running")
    await one.start("a")
    fake.units("deactivating", sub="stop")
    await one.stop("a")
    assert (await refused(one.start("a"))).cause == Cause.STATE
    assert fake.verbs() == []
    fake.units("failed", sub="failed")
    await one.stop("a")
    assert fake.verbs() == ["stop", "reset-failed"]


async def test_placement_comes_first(fake: Fake) -> None:
    """Asked before a start and only then; its refusal is the start's."""
    asked: list[str] = []

    async def place(member: str) -> Sequence[str]:
        asked.append(member)
        raise BackendError(Cause.PLACEMENT, "GPU 0 is foreign")

    one = SystemdBackend("ab", command=fake.command, place=place)
    assert (await refused(one.start("b"))).cause == Cause.PLACEMENT
    assert asked == ["b"] and fake.verbs() == []


async def test_refusals(fake: Fake) -> None:
    """Names that would be another unit, members nobody knows, and sleep."""
    for name in ("", "a/b", "a b", "a;b", "../x", "-x", "é"):
        with pytest.raises(ValueError, match="accepted"):
            SystemdBackend([name])
    one = backend(fake)
    assert (await refused(one.start("z"))).cause == Cause.UNKNOWN_MEMBER
    assert (await refused(one.sleep("a", Withdrawn("a", "test", 0.0)))).cause == Cause.UNSUPPORTED
    assert (await refused(one.wake("a"))).cause == Cause.UNSUPPORTED
    assert await one.processes() == {"a": frozenset(), "b": frozenset()}
    await one.close()
    assert os.environ.get("SYSTEMD_COLORS") is None
