"""Reloading in the same process: what is in force afterwards is the file, or what was before."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwattd.api.ports import Rejected
from kvwattd.api.schemas import ModeView, SloTargetView, SloView
from kvwattd.config import ConfigError, Mode, load_config
from kvwattd.control import Control
from kvwattd.loop import Daemon
from kvwattd.reload import Reloader

LIMITS_S = (0.1, 0.2, 0.5)
STATE = tempfile.mkdtemp(prefix="kvwatt-reload-")
atexit.register(shutil.rmtree, STATE, ignore_errors=True)


def text(names: str = "a", limit_s: float = 0.1, poll_s: float = 0.5, mode: str = "shadow") -> str:
    """A configuration with an instance per letter, all on GPUs that a letter never shares."""
    items = "".join(
        f'[[instance]]\nname = "{n}"\nurl = "http://127.0.0.1:9"\ngpus = ["{ord(n)}"]\npoll_s = {poll_s}\n'
        for n in names
    )
    return f'[daemon]\nmode = "{mode}"\nstate_dir = "{STATE}"\n[slo.tbt]\nlimit_s = {limit_s}\n{items}'


def started(folder: Path, content: str) -> tuple[Path, Daemon, Control]:
    path = folder / "kvwatt.toml"
    path.write_text(content)
    daemon = Daemon(load_config(path))
    return path, daemon, Control(daemon, reloader=Reloader(path, daemon))


def write(path: Path, content: str) -> None:
    path.write_text(content)


async def test_promises_policy_and_periods_are_live(tmp_path: Path) -> None:
    """The same instance goes on with new values; what it learned stays."""
    path, daemon, control = started(tmp_path, text())
    run = daemon.runs["a"]
    write(path, text(limit_s=0.2, poll_s=0.25, mode="off") + "[policy]\nmargin = 0.2\n")
    done = await control.reload()
    assert daemon.runs["a"] is run and daemon.mode is Mode.OFF
    assert run.slo.tbt is not None and run.slo.tbt.limit_s == 0.2
    assert (run.config.poll_s, run.params.margin) == (0.25, 0.2)
    assert done.applied == ["daemon.mode", "instance[a].poll_s", "policy.margin", "slo.tbt.limit_s"]
    assert control.config_state().last == done


async def test_what_was_set_over_rest_stands_until_deleted(tmp_path: Path) -> None:
    """The file may say what it likes; deleting the setting follows the file as it is now."""
    path, daemon, control = started(tmp_path, text())
    await control.set_mode(ModeView(mode=Mode.OFF), "operator")
    await control.set_slo("a", SloView(tbt=SloTargetView(limit_s=0.7)), "operator")
    write(path, text(limit_s=0.2, mode="active"))
    done = await control.reload()
    assert done.overridden == ["daemon.mode", "instance[a].slo"]
    assert daemon.mode is Mode.OFF and control.slos()["a"].tbt == SloTargetView(limit_s=0.7)
    assert (await control.clear_mode()).mode is Mode.ACTIVE
    assert (await control.clear_slo("a")).tbt == SloTargetView(limit_s=0.2)


LEASE = "[guard]\nlease_s = 0.01\n"


@pytest.mark.parametrize(
    "content", ["", "[", text(limit_s=-1), text() + "[deamon]\n", text("aa"), text() + LEASE]
)
async def test_a_refused_file_leaves_everything_as_it_was(tmp_path: Path, content: str) -> None:
    """Not one value of it takes effect; REST, status and metrics tell."""
    path, daemon, control = started(tmp_path, text())
    before, run = daemon.config, daemon.runs["a"]
    write(path, content)
    with pytest.raises(Rejected) as refused:
        await control.reload()
    assert refused.value.field and refused.value.accepted
    assert daemon.config is before and daemon.runs == {"a": run}
    state = control.status().config
    assert state.failures_total == 1 and state.last is not None and not state.last.ok and state.last.errors


async def test_a_vanished_file_is_refused_too(tmp_path: Path) -> None:
    """An editor that fails half-way costs nothing."""
    path, daemon, control = started(tmp_path, text())
    before = daemon.config
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(Rejected, match=r"kvwatt\.toml"):
        await control.reload()
    assert daemon.config is before


async def test_reloads_at_the_same_time_follow_each_other(tmp_path: Path) -> None:
    """Each sees a whole configuration; the last one is in force."""
    path, daemon, control = started(tmp_path, text())
    write(path, text(limit_s=0.5))
    await asyncio.gather(*(control.reload() for _ in range(10)))
    assert control.config_state().reloads_total == 10
    assert daemon.runs["a"].slo.tbt is not None and daemon.runs["a"].slo.tbt.limit_s == 0.5


async def found(gpus: Sequence[str]) -> None:
    """This machine has every GPU."""


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ab", "ba", "abc", ""]),
        st.sampled_from(LIMITS_S),
        st.sampled_from((0.25, 0.5)),
    ),
    min_size=1,
    max_size=6,
)


def polled() -> set[str]:
    """Names of the polls that go on."""
    live = [task for task in asyncio.all_tasks() if not task.cancelling()]
    return {task.get_name() for task in live if task.get_name().startswith("poll ")}


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_any_sequence_of_edits_ends_in_what_the_last_sound_file_says(
    steps: list[tuple[str, float, float]],
) -> None:
    """Instances, promises and periods are those of the file; nobody goes on polling a removed one."""

    async def play(folder: Path) -> None:
        path, daemon, _ = started(folder, text("abc"))
        reloader = Reloader(path, daemon, look_up=found)
        stop = asyncio.Event()
        running = asyncio.create_task(daemon.run(stop))
        await asyncio.sleep(0)
        expected = load_config(path)
        for names, limit_s, poll_s in steps:
            write(path, text(names, limit_s, poll_s))
            try:
                await reloader.reload()
                expected = load_config(path)
            except ConfigError:
                assert not names
        assert {name: run.config for name, run in daemon.runs.items()} == {
            item.name: item for item in expected.instances
        }
        assert {run.slo for run in daemon.runs.values()} == {expected.slo_of(expected.instances[0])}
        async with asyncio.timeout(60):  # a poll whose deadline ends at this moment looks like one that ends
            while polled() != {f"poll {name}" for name in daemon.runs}:  # noqa: ASYNC110  # tasks set no event
                await asyncio.sleep(0.01)
        stop.set()
        await running

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))
