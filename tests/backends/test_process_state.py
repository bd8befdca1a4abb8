"""What facts about a process mean: laws over every combination of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvwattd.instances.backend import BackendState
from kvwattd.instances.process_facts import Facts, Running, Start, Stop
from kvwattd.instances.process_state import Judged, StopLimits, Todo, judge

BOOT = "this"
boots = st.sampled_from([BOOT, "earlier", ""])
times = st.floats(0.0, 1000.0)
facts = st.builds(
    Facts,
    start=st.none() | st.builds(Start, st.just("n"), times, boots),
    running=st.none() | st.builds(Running, st.integers(1, 9), st.integers(1, 9), boots, st.just("n")),
    stop=st.none() | st.builds(Stop, times, boots, st.booleans()),
    failed=st.none() | st.just("it failed"),
    locked=st.booleans(),
    alive=st.booleans(),
    leftovers=st.frozensets(st.integers(1, 9), max_size=2),
).filter(lambda found: found.running is not None or not found.alive)
limits = st.builds(StopLimits, st.floats(1.0, 100.0), st.none() | st.floats(0.0, 100.0))


@given(facts, times, limits)
def test_what_is_there_is_never_stopped(found: Facts, now_s: float, limit: StopLimits) -> None:
    """While a process, a worker or a lock is there, it is not called gone, and no record is cleared."""
    judged = judge(found, now_s, BOOT, limit)
    if found.alive or found.locked or found.leftovers:
        assert judged.state is not BackendState.STOPPED
        assert judged.todo not in (Todo.SETTLE_STOPPED, Todo.SETTLE_FAILED)
    else:
        assert judged.state in (BackendState.STOPPED, BackendState.STARTING, BackendState.FAILED)
        assert judged.todo not in (Todo.TERMINATE, Todo.KILL)


@given(facts, times, limits)
def test_signals_only_after_a_stop(found: Facts, now_s: float, limit: StopLimits) -> None:
    """Nobody is signalled who was not asked to stop; SIGKILL only where the operator chose it."""
    todo = judge(found, now_s, BOOT, limit).todo
    if todo in (Todo.TERMINATE, Todo.KILL):
        assert found.stop is not None
    if todo is Todo.KILL:
        assert limit.kill_after_s is not None


@given(facts, times, limits)
def test_reasons(found: Facts, now_s: float, limit: StopLimits) -> None:
    """FAILED and UNKNOWN always say why."""
    judged = judge(found, now_s, BOOT, limit)
    assert (judged.reason != "") == (judged.state in (BackendState.FAILED, BackendState.UNKNOWN))


def test_a_reboot_ends_everything() -> None:
    """Records of an earlier boot with nothing behind them: stopped, and cleared away."""
    nothing = Facts(None, None, None, None, False, False)
    for found in (
        Facts(None, Running(1, 1, "earlier", "n"), None, None, False, False),
        Facts(Start("n", 500.0, "earlier"), None, None, None, False, False),
    ):
        assert judge(found, 501.0, BOOT, StopLimits()) == Judged(
            BackendState.STOPPED, todo=Todo.SETTLE_STOPPED
        )
    assert judge(nothing, 0.0, BOOT, StopLimits()) == Judged(BackendState.STOPPED)
