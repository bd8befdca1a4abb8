"""Starts, drains and what may go wrong with each, one by one, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_stage import PARAMS, Stage
from fake_world import Engine, Hurt
from virtual_time import run_virtual

from kvwatt.pool import ActionKind, MemberStatus
from kvwattd.instances.scaler_params import OnDeadline

READY, STOPPED, ASLEEP = MemberStatus.READY, MemberStatus.STOPPED, MemberStatus.ASLEEP
FAILED, DRAINING, STARTING = MemberStatus.FAILED, MemberStatus.DRAINING, MemberStatus.STARTING


def test_a_start_ends_in_the_router_after_health_and_warm_up() -> None:
    """START: asked, up, warmed up, admitted; READY only then."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a")
        await stage.steps(2)
        assert [stage.status(n) for n in "abc"] == [READY, STOPPED, STOPPED]
        assert await stage.order("b", ActionKind.START) == ()
        await stage.until(lambda: stage.status("b") is READY)
        assert stage.world.in_router == {"a", "b"}
        assert not stage.world.broken

    run_virtual(run())


@pytest.mark.parametrize("action", [ActionKind.DRAIN_TO_SLEEP, ActionKind.DRAIN_TO_STOP])
def test_a_drain_waits_for_its_requests(action: ActionKind) -> None:
    """Out of the router at once, asleep or stopped only after the last request; and back again."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        stage.world.members["b"].requests.append(stage.now() + 25.0)
        await stage.steps(2)
        assert await stage.order("b", action) == ()
        await stage.steps(2)
        assert stage.world.in_router == {"a"}
        await stage.steps(18)
        assert stage.status("b") is DRAINING
        assert stage.world.members["b"].engine is Engine.UP
        ended = ASLEEP if action is ActionKind.DRAIN_TO_SLEEP else STOPPED
        await stage.until(lambda: stage.status("b") is ended)
        back = ActionKind.WAKE if ended is ASLEEP else ActionKind.START
        assert await stage.order("b", back) == ()
        await stage.until(lambda: stage.status("b") is READY)
        assert not stage.world.broken
        assert stage.world.lost == 0

    run_virtual(run())


def test_the_minimum_keeps_serving() -> None:
    """A drain that would leave fewer than the minimum is refused, two at once too."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        await stage.steps(2)
        assert await stage.order("a", ActionKind.DRAIN_TO_STOP) == ()
        (refused,) = await stage.order("b", ActionKind.DRAIN_TO_STOP)
        assert "minimum is 1" in refused.reason

    run_virtual(run())


def test_a_drain_is_taken_back_when_the_others_die() -> None:
    """What was to go serves on when it is the last one left."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        stage.world.members["b"].requests.append(stage.now() + 40.0)
        await stage.steps(2)
        await stage.order("b", ActionKind.DRAIN_TO_STOP)
        await stage.steps(3)
        stage.world.die("a")
        await stage.until(lambda: stage.status("b") is READY, 5)
        assert stage.status("a") is FAILED
        assert stage.world.in_router == {"b"}

    run_virtual(run())


def test_a_start_that_does_not_come_is_cleaned_up() -> None:
    """FAILED after its time, stopped again, and tried anew only after a while."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a")
        stage.world.never_up = {"b"}
        await stage.steps(2)
        await stage.order("b", ActionKind.START)
        await stage.until(lambda: stage.status("b") is FAILED)
        await stage.until(lambda: stage.world.members["b"].engine is Engine.OFF)
        assert stage.status("b") is FAILED
        (refused,) = await stage.order("b", ActionKind.START)
        assert "cleaned up" in refused.reason or "tried again" in refused.reason
        stage.world.never_up = set()
        await stage.until(lambda: stage.status("b") is STOPPED)
        assert await stage.order("b", ActionKind.START) == ()
        await stage.until(lambda: stage.status("b") is READY)
        assert not stage.world.broken

    run_virtual(run())


@pytest.mark.parametrize("asleep", [False, True])
def test_a_start_can_be_cancelled(asleep: bool) -> None:
    """It goes back to where it came from."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a")
        if asleep:
            stage.world.put("b", Engine.ASLEEP)
            stage.world.takes_s["wake"] = 30.0
        await stage.steps(2)
        await stage.order("b", ActionKind.WAKE if asleep else ActionKind.START)
        await stage.steps(4)
        assert stage.status("b") is STARTING
        assert await stage.order("b", ActionKind.CANCEL_START) == ()
        await stage.until(lambda: stage.status("b") is (ASLEEP if asleep else STOPPED))
        assert "b" not in stage.world.in_router
        assert not stage.world.broken

    run_virtual(run())


def test_an_undrain_goes_back_into_service() -> None:
    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        stage.world.members["b"].requests.append(stage.now() + 50.0)
        await stage.steps(2)
        await stage.order("b", ActionKind.DRAIN_TO_STOP)
        await stage.steps(3)
        assert await stage.order("b", ActionKind.UNDRAIN) == ()
        await stage.until(lambda: stage.status("b") is READY, 3)
        assert stage.world.in_router == {"a", "b"}

    run_virtual(run())


@pytest.mark.parametrize("choice", list(OnDeadline))
def test_a_late_drain_follows_the_operators_choice(choice: OnDeadline) -> None:
    async def run() -> None:
        stage = Stage(params=replace(PARAMS, on_deadline=choice))
        stage.world.forced_allowed = choice is OnDeadline.STOP_ANYWAY
        stage.serve("a", "b")
        stage.world.members["b"].requests.append(stage.now() + 500.0)
        await stage.steps(2)
        await stage.order("b", ActionKind.DRAIN_TO_SLEEP)
        await stage.steps(int(PARAMS.drain_timeout_s) + 10)
        expected = {
            OnDeadline.KEEP_WAITING: DRAINING,
            OnDeadline.UNDRAIN: READY,
            OnDeadline.STOP_ANYWAY: STOPPED,
        }
        assert stage.status("b") is expected[choice], stage.describe()
        assert stage.world.lost == (choice is OnDeadline.STOP_ANYWAY)
        assert not stage.world.broken

    run_virtual(run())


@pytest.mark.parametrize("part", ["router", "probe", "backend"])
@pytest.mark.parametrize("hurt", list(Hurt))
def test_a_drain_waits_for_whoever_is_out(part: str, hurt: Hurt) -> None:
    """Router, probe or backend out: nothing sleeps that might be asked; afterwards the drain goes on."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        await stage.steps(2)
        stage.world.hurt[part] = hurt
        await stage.order("b", ActionKind.DRAIN_TO_SLEEP)
        await stage.steps(15)
        if part != "backend":
            assert stage.world.members["b"].engine is Engine.UP
        del stage.world.hurt[part]
        given_up = {READY} if (part, hurt) == ("backend", Hurt.HANGS) else set()  # beyond end_timeout_s
        await stage.until(lambda: stage.status("b") in {ASLEEP} | given_up, 60)
        assert stage.status("a") is READY
        assert not stage.world.broken

    run_virtual(run())


def test_what_sleeps_is_out_of_the_router_first() -> None:
    """Found asleep in the router: withdrawn in the first step; put to sleep by somebody else: likewise."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a", "c")
        stage.world.put("b", Engine.ASLEEP, admitted=True)
        await stage.scaler.step()
        assert stage.world.in_router == {"a", "c"}
        stage.world.put("c", Engine.ASLEEP)
        await stage.scaler.step()
        assert stage.world.in_router == {"a"}
        assert [stage.status(n) for n in "abc"] == [READY, ASLEEP, ASLEEP]

    run_virtual(run())


def test_requests_that_wait_in_a_sleeping_engine_wake_it() -> None:
    """Somebody went past the router: answered, then it sleeps again."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a")
        stage.world.put("b", Engine.ASLEEP)
        await stage.steps(2)
        stage.world.members["b"].requests.append(stage.now() + 8.0)
        await stage.steps(4)
        assert stage.world.members["b"].engine in (Engine.UP, Engine.WAKING)
        await stage.until(lambda: stage.status("b") is ASLEEP)
        assert not stage.world.members["b"].requests
        assert not stage.world.broken

    run_virtual(run())


def test_a_dead_member_leaves_the_router_at_once() -> None:
    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        await stage.steps(2)
        stage.world.die("b")
        await stage.scaler.step()
        assert stage.world.in_router == {"a"}
        assert stage.status("b") is FAILED

    run_virtual(run())


def test_silence_alone_takes_nothing_below_the_minimum() -> None:
    """All probes out: all stay in service. One silent beside another: it is given up, and comes back."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        await stage.steps(2)
        stage.world.hurt["probe"] = Hurt.FAILS
        await stage.steps(20)
        assert stage.world.in_router == {"a", "b"}
        assert stage.world.serving() == ["a", "b"] or stage.world.serving() == ["b", "a"]
        del stage.world.hurt["probe"]
        await stage.steps(3)
        stage.world.members["b"].mute = True
        await stage.steps(10)
        assert stage.world.in_router == {"a"}
        assert stage.world.members["b"].engine is Engine.UP  # never stopped for silence
        stage.world.members["b"].mute = False
        await stage.until(lambda: stage.status("b") is READY)
        assert not stage.world.broken

    run_virtual(run())


def test_a_restarted_router_is_told_again() -> None:
    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        await stage.steps(2)
        stage.world.restart_router()
        await stage.scaler.step()
        assert stage.world.in_router == {"a", "b"}

    run_virtual(run())


def test_shadow_orders_nothing() -> None:
    """Looks and tells; no call that changes anything reaches router or backend."""

    async def run() -> None:
        stage = Stage()
        stage.scaler.acting = False
        stage.serve("a")
        stage.world.put("b", Engine.ASLEEP, admitted=True)
        stage.world.put("c", Engine.UP)
        await stage.steps(80)
        assert stage.world.calls == []
        assert stage.status("a") is READY
        assert stage.status("b") is ASLEEP
        (refused,) = await stage.order("a", ActionKind.DRAIN_TO_STOP)
        assert "shadow" in refused.reason

    run_virtual(run())


def test_orders_that_do_not_fit_are_refused() -> None:
    async def run() -> None:
        stage = Stage()
        stage.serve("a")
        await stage.steps(2)
        for member, action in (
            ("a", ActionKind.WAKE),
            ("a", ActionKind.DRAIN_TO_STOP),
            ("b", ActionKind.UNDRAIN),
            ("nobody", ActionKind.START),
        ):
            assert len(await stage.order(member, action)) == 1
        assert not stage.world.calls or all(part == "router" for part, _ in stage.world.calls)

    run_virtual(run())


def test_what_was_never_adopted_is_not_forgotten() -> None:
    """Closed before its first step, the scaler leaves the journal of the run before as it was."""

    async def run() -> None:
        stage = Stage()
        stage.serve("a", "b")
        await stage.steps(2)
        await stage.order("b", ActionKind.DRAIN_TO_STOP)
        await stage.crash()
        await stage.scaler.close()
        await stage.crash()
        await stage.until(lambda: stage.status("b") is STOPPED)
        assert not stage.world.broken

    run_virtual(run())


def test_on_adoption_a_sleeper_leaves_the_router_before_anything_else() -> None:
    """Requests that reach it hang: whatever else is to be done comes after, wherever it is listed."""

    async def run() -> None:
        stage = Stage()
        stage.world.put("a", Engine.UP)  # to be admitted
        stage.world.put("b", Engine.UP, admitted=True)
        stage.world.put("c", Engine.ASLEEP, admitted=True)
        await stage.steps(4)
        assert stage.world.calls == [("router", "c"), ("router", "a")]
        assert stage.world.in_router == {"a", "b"}

    run_virtual(run())
