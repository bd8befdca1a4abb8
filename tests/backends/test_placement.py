"""Which GPUs may be used: the unmodified nvidia-ml-py on simulated GPUs, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_scripts import answer, gpu_spec

from kvwatt_sim.nvml.build import NvmlLibs, build
from kvwatt_sim.nvml.spec import demo_uuid
from kvwatt_sim.ports import free_ports

UUIDS = [demo_uuid(index) for index in range(4)]

# Four GPUs, the last split by MIG; two members' processes and a stranger's, all real.
SCRIPT = """
import asyncio, json, subprocess, sys
from pathlib import Path
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import Fault, Health
from kvwattd.instances.backend import BackendError
from kvwattd.instances.placement import Need, Placement
from kvwattd.instances.placement_state import parked

gpus = SimGpus.open(Path(sys.argv[1]))
UUIDS = [gpus.spec(i).uuid for i in range(gpus.count)]
GIB = 1 << 30
processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
A, B, STRANGER = [process.pid for process in processes]
told = {"a": {A}, "b": {B}}

async def owners():
    if told is None:
        raise BackendError("deadline", "silent")
    return told

def placement(needs=None, **options):
    return Placement(needs or {"a": Need(("0",)), "b": Need(tuple(UUIDS[1:]))}, owners, **options)

async def states(one):
    return [[use.state, list(use.members), use.reason] for use in (await one.look()).values()]

async def refusal(one, member):
    try:
        return list(await one.place(member))
    except BackendError as error:
        return [str(error.cause), error.detail]

async def main():
{body}

try:
    print(json.dumps(asyncio.run(main())))
finally:
    [process.kill() or process.wait() for process in processes]
"""


@pytest.fixture(scope="module")
def placement_libs() -> NvmlLibs:
    return build()


@pytest.fixture
def play(placement_libs: NvmlLibs, tmp_path: Path) -> Callable[[str], Any]:
    """Runs the body of an async function; gives what it returns."""

    def run(body: str) -> Any:
        specs = [gpu_spec(index, mig=index == 3) for index in range(4)]
        return answer(SCRIPT, body, specs, placement_libs, tmp_path / "gpus")

    return run


def test_whose_it_is(play: Callable[[str], Any]) -> None:
    """Free, a member's, a stranger's, one with hidden memory, and MIG; the dead hold nothing."""
    found = play("""
    gpus.set_process(0, A, 40 * GIB)
    gpus.set_process(1, STRANGER, GIB)
    gpus.set_health(2, Health(hidden_bytes=20 * GIB))
    one = placement()
    first = await states(one)
    gpus.set_process(0, STRANGER, GIB)
    gpus.set_health(2, Health(hidden_bytes=GIB // 2))
    processes[2].kill(); processes[2].wait()
    gpus.set_process(2, B, GIB)
    second = await states(one)
    one.close()
    return [first, second, STRANGER]
    """)
    first, second, stranger = found
    assert [state for state, _, _ in first] == ["busy", "foreign", "foreign", "foreign"]
    assert first[0][1] == ["a"]
    assert str(stranger) in first[1][2] and "sleep" in first[1][2]
    assert "cannot be seen" in first[2][2] and "MIG" in first[3][2]
    assert [state for state, _, _ in second] == ["busy", "free", "busy", "foreign"], "the stranger is dead"
    assert second[2][1] == ["b"]


def test_what_is_broken(play: Callable[[str], Any]) -> None:
    """Memory errors, rows and pages, what the driver asks for, hardware Xids; a program's Xid is none."""
    found = play("""
    one = placement({"a": Need((UUIDS[0],))})
    answers = [(await states(one))[0]]
    for health in (
        Health(ecc_uncorrected=2), Health(retirement_pending=True), Health(remap_pending=True),
        Health(remap_failure=True), Health(recovery_action=1), Health(ecc=False, ecc_uncorrected=5),
        Health(ecc_corrected=9, remapped_corrected=1, remapped_uncorrected=1), Health(xid=31), Health(xid=79),
    ):
        gpus.set_health(0, health)
        answers.append((await states(one))[0])
    refused = await refusal(one, "a")
    one.close()
    return [[state, reason] for state, _, reason in answers] + [refused]
    """)
    *answers, refused = found
    wanted = ["free", *["broken"] * 5, "free", "free", "free", "broken"]
    assert [state for state, _ in answers] == wanted, answers
    for (_, reason), words in zip(
        answers[1:6], ("2 uncorrectable", "pages", "remapped: it needs", "could not", "a reset"), strict=True
    ):
        assert words in reason
    assert "fallen off the bus" in answers[9][1]
    assert refused[0] == "placement" and "broken" in refused[1] and "Xid 79" in refused[1]


def test_what_cannot_be_told(play: Callable[[str], Any]) -> None:
    """A hung or failing NVML, a lost GPU, owners that nobody knows: never free, and it recovers."""
    found = play("""
    global told
    one = placement(deadline_s=1.0)
    answers = []
    for fault in (
        Fault("nvmlDeviceGetComputeRunningProcesses", hang_s=1e9),
        Fault("nvmlDeviceGetMemoryInfo", error="UNKNOWN"),
        Fault("*", error="GPU_IS_LOST"),
        Fault("nvmlDeviceGetTotalEccErrors", error="NO_PERMISSION"),
    ):
        gpus.inject(0, fault)
        answers.append((await states(one))[0][:1] + [await refusal(one, "a")])
        gpus.clear_faults(0)
        await asyncio.sleep(1.1)
    gpus.set_process(0, A, GIB)
    told = None
    answers.append((await states(one))[0][:1])
    told = {"a": {A}}
    answers.append((await states(one))[0][:1])
    missing = placement({"a": Need(("GPU-nonesuch",))})
    answers.append((await states(missing))[0])
    missing.close(); one.close()
    return answers
    """)
    assert [state for state, *_ in found] == [
        "unknown",
        "unknown",
        "broken",
        "unknown",
        "unknown",
        "busy",
        "broken",
    ], found
    assert all(refused[0][0] == "placement" for _, *refused in found[:4])


def test_placing(play: Callable[[str], Any]) -> None:
    """Fixed GPUs all or none; of a pool neighbours first; nothing twice before it shows; claims end."""
    found = play("""
    clock = [0.0]
    pool = tuple(UUIDS[:3])
    needs = {"a": Need(count=1, pool=pool), "b": Need(count=1, pool=pool), "c": Need(count=2, pool=pool),
             "d": Need(("0", "3"))}
    one = placement(needs, claim_s=100.0, now=lambda: clock[0])
    answers = {"fixed": await refusal(one, "d")}
    answers["together"] = await asyncio.gather(refusal(one, "a"), refusal(one, "b"))
    answers["again"] = await refusal(one, "a")
    answers["full"] = await refusal(one, "c")
    parks = parked(await one.look(), ())
    one.release("a"); one.release("b")
    answers["released"] = await refusal(one, "c")
    clock[0] = 101.0
    gpus.set_process(0, STRANGER, GIB)
    answers["any two"] = await refusal(one, "c")
    answers["parks"] = {uuid: list(clocks) for uuid, clocks in parks.items()}
    for needs in ({"a": Need()}, {"a": Need(count=2, pool=("0",))}):
        try:
            placement(needs)
        except ValueError as error:
            answers["wrong"] = str(error)
    one.close()
    return answers
    """)
    assert (
        found["fixed"][0] == "placement" and "MIG" in found["fixed"][1] and UUIDS[0] not in found["fixed"][1]
    )
    assert found["together"] == [[UUIDS[0]], [UUIDS[1]]]
    assert found["again"] == [UUIDS[0]], "the same start, asked again"
    assert found["full"][0] == "placement" and "claimed by a" in found["full"][1]
    assert found["parks"] == {UUIDS[2]: [210, 210]}, "not what is about to start, nor what MIG splits"
    assert found["released"] == UUIDS[:2] and found["any two"] == UUIDS[1:3]
    assert "1 to 1" in found["wrong"]


def test_parking(play: Callable[[str], Any]) -> None:
    """The lowest clock where nothing runs or all sleep; a foreign or broken GPU is left alone."""
    found = play("""
    one = placement({"a": Need(tuple(UUIDS))})
    gpus.set_process(0, A, GIB); gpus.set_process(0, B, GIB)
    gpus.set_health(2, Health(remap_pending=True))
    uses = await one.look()
    one.close()
    return [sorted(parked(uses, asleep)) for asleep in ((), ("a",), ("a", "b"))]
    """)
    assert found == [[UUIDS[1]], [UUIDS[1]], sorted(UUIDS[:2])]


def test_with_real_processes(play: Callable[[str], Any]) -> None:
    """A simulated vLLM as a child: loading, up, asleep, stopped, and what its GPU is meanwhile."""
    found = play(
        """
    import tempfile
    from kvwattd.instances.backend import Withdrawn
    from kvwattd.instances.process import Launch, ProcessBackend
    from kvwattd.instances.vllm_sleep import SleepBackend
    import time
    port = PORT
    command = (sys.executable, "-m", "kvwatt_sim.server", "--card", "l20", "--state", sys.argv[1],
               "--gpu", "1", "--port", str(port), "--start-s", "0.5")
    one = placement({"a": Need((UUIDS[1],)), "b": Need((UUIDS[1],))})
    folder = Path(tempfile.mkdtemp())
    inner = ProcessBackend(folder, {"a": Launch(command), "b": Launch(command)}, place=one.place)
    one._owners = inner.processes
    backend = SleepBackend(inner, {"a": f"http://127.0.0.1:{port}"})
    seen = []

    async def until(wanted, gpu):
        until_s = time.monotonic() + 90.0
        while time.monotonic() < until_s:
            state, use = (await backend.states())["a"], (await one.look())[UUIDS[1]]
            if (state, use.state) == (wanted, gpu):
                asleep = ["a"] if state == "asleep" else []
                seen.append([state, use.state, list(use.members), list(parked({UUIDS[1]: use}, asleep))])
                return
            await asyncio.sleep(0.02)
        raise AssertionError((wanted, gpu, state, use, backend.reasons, inner.log("a").read_text()))

    await until("stopped", "free")
    await backend.start("a")
    await until("running", "busy")
    try:
        await backend.start("b")
    except BackendError as error:
        seen.append([str(error.cause), error.detail])
    while True:
        try:
            await backend.sleep("a", Withdrawn("a", "test", time.monotonic()))
            break
        except BackendError as error:
            assert error.cause in ("unreachable", "busy"), error
            await asyncio.sleep(0.05)
    await until("asleep", "busy")
    await backend.stop("a")
    await until("stopped", "free")
    await backend.close(); one.close()
    return seen
    """.replace("PORT", str(free_ports(1)[0]))
    )
    stopped, up, refused, asleep, again = found
    assert stopped == again == ["stopped", "free", [], [UUIDS[1]]]
    assert up == ["running", "busy", ["a"], []]
    assert refused[0] == "placement" and "is busy (a)" in refused[1]
    assert asleep == ["asleep", "busy", ["a"], [UUIDS[1]]]
