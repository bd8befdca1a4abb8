"""The reader over simulated GPUs, through the unmodified NVML binding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Reader = Callable[..., Any]


def test_info(reader: Reader) -> None:
    """GPUs named by index and by UUID are described in the order given."""
    found = reader(
        """
        reader = GpuReader(["1", UUIDS[0]], deadline_s=5.0)
        infos = await reader.start()
        return [[i.uuid == UUIDS[1 - n], i.index, i.name, i.supported_mhz[0], i.supported_mhz[-1],
                 len(i.supported_mhz), i.default_mhz, i.power_limit_w, i.mig, i.persistence]
                for n, i in enumerate(infos)]
        """
    )
    clocks = [210, 2520, 155, 2520, 275.0]
    assert found == [
        [True, 1, "NVIDIA L20", *clocks, True, True],
        [True, 0, "NVIDIA L20", *clocks, False, True],
    ]


def test_sample_follows_the_plant(reader: Reader) -> None:
    """Clock, power, temperature, utilisation and energy are the plant's."""
    found = reader(
        """
        clock = iter([0.0, 10.0])
        gpus.publish(0, 0.25, 0.5)
        gpus.set_temperature(0, 61.0)
        gpus.advance(30.0)
        reader = GpuReader(UUIDS[:1], deadline_s=5.0, now=lambda: next(clock))
        await reader.start()
        first = (await reader.read())[UUIDS[0]]
        before = gpus.read(0).visible_j
        gpus.advance(10.0)
        sample = (await reader.read())[UUIDS[0]]
        truth = gpus.read(0)
        account = reader.energy(UUIDS[0])
        return {
            "first_j": first.energy_j, "observed": sample.observed_s,
            "clock": [sample.clock_mhz, truth.clock_mhz], "power": [sample.power_w, truth.power_w],
            "energy": [sample.energy_j, truth.visible_j - before], "estimated": account.estimated_j,
            "temperature": sample.temperature_c, "busy": [sample.utilization, truth.busy],
            "disagrees": account.disagrees, "power_from_counter": account.counter_power_w,
        }
        """,
        manual_time=True,
    )
    assert found["first_j"] == 0.0
    assert found["observed"] == 10.0
    assert found["clock"][0] == found["clock"][1]
    assert found["power"][0] == pytest.approx(found["power"][1], abs=0.01)
    assert found["energy"][0] == pytest.approx(found["energy"][1], abs=0.01) and found["energy"][0] > 100.0
    assert found["estimated"] == 0.0
    assert found["temperature"] == 61.0
    assert found["busy"][0] == pytest.approx(found["busy"][1], abs=0.02)
    assert found["disagrees"] is False
    assert found["power_from_counter"] == pytest.approx(found["power"][0], rel=0.02)


def test_driver_reload(reader: Reader) -> None:
    """A counter that begins anew is counted as a reset and bridged; the sum goes on rising."""
    found = reader(
        """
        clock = iter([0.0, 10.0, 20.0])
        gpus.publish(0, 0.5, 0.5)
        gpus.advance(30.0)
        reader = GpuReader(UUIDS[:1], deadline_s=5.0, now=lambda: next(clock))
        await reader.start()
        sums = [(await reader.read())[UUIDS[0]].energy_j]
        gpus.advance(10.0)
        sums.append((await reader.read())[UUIDS[0]].energy_j)
        gpus.reload_driver(0)
        gpus.advance(10.0)
        sample = (await reader.read())[UUIDS[0]]
        account = reader.energy(UUIDS[0])
        return [*sums, sample.energy_j, account.resets, account.estimated_j, sample.power_w]
        """,
        manual_time=True,
    )
    start_j, before_j, after_j, resets, estimated_j, power_w = found
    assert start_j < before_j < after_j
    assert resets == 1
    assert estimated_j == pytest.approx(after_j - before_j)
    assert estimated_j == pytest.approx(10.0 * power_w, rel=0.05)


def test_unknown_gpu(reader: Reader) -> None:
    """A GPU that does not exist is named."""
    found = reader(
        """
        return [await unavailable(GpuReader([name], 5.0).start()) for name in ("GPU-nobody", "7")]
        """
    )
    assert "GPU-nobody" in found[0]
    assert "GPU 7" in found[1]


def test_one_lost_gpu_leaves_the_other(reader: Reader) -> None:
    """A lost GPU is left out and told; the other is read; both are back when it is, without a restart."""
    found = reader(
        """
        reader = GpuReader(UUIDS, deadline_s=5.0)
        await reader.start()
        gpus.inject(0, Fault(call="*", error="GPU_IS_LOST"))
        samples = await reader.read()
        reason = reader.failures[UUIDS[0]]
        gpus.clear_faults(0)
        await readable(reader, set(UUIDS))
        return [list(samples) == UUIDS[1:], reason, reader.failures]
        """
    )
    assert found[0] is True
    assert "lost" in found[1]
    assert found[2] == {}


def test_hang(reader: Reader) -> None:
    """A hanging call costs the deadline, not more; reading goes on when the driver answers again."""
    found = reader(
        """
        reader = GpuReader(UUIDS, deadline_s=0.3)
        await reader.start()
        gpus.inject(0, Fault(call="nvmlDeviceGetTemperature*", hang_s=300.0))
        reasons, others = [], []
        for _ in range(8):
            samples = await reader.read()
            reasons.append(reader.failures[UUIDS[0]])
            others.append(UUIDS[1] in samples)
        gpus.clear_faults(0)
        samples = await readable(reader, set(UUIDS))
        return [reasons[0], reasons[-1], all(others), len(samples)]
        """
    )
    assert "did not answer within 0.3 s" in found[0]
    assert "calls hang" in found[1]
    assert found[2:] == [True, 2]


def test_all_lost(reader: Reader) -> None:
    """When no GPU can be read the reason is raised, not an empty answer."""
    found = reader(
        """
        reader = GpuReader(UUIDS[:1], deadline_s=5.0)
        early = await unavailable(reader.read())
        await reader.start()
        gpus.inject(0, Fault(call="nvmlDeviceGetClockInfo", error="UNKNOWN"))
        return [early, await unavailable(reader.read())]
        """
    )
    assert found[0] == "not started"
    assert "Unknown Error" in found[1]


def test_no_counter(reader: Reader) -> None:
    """Without an energy counter the sum is power x time and all of it is labelled as estimated."""
    found = reader(
        """
        clock = iter([0.0, 10.0])
        gpus.inject(0, Fault(call="nvmlDeviceGetTotalEnergyConsumption", error="NOT_SUPPORTED"))
        reader = GpuReader(UUIDS[:1], deadline_s=5.0, now=lambda: next(clock))
        await reader.start()
        await reader.read()
        sample = (await reader.read())[UUIDS[0]]
        account = reader.energy(UUIDS[0])
        return [sample.energy_j, account.estimated_j, 10.0 * sample.power_w]
        """,
        manual_time=True,
    )
    assert found[0] == found[1] == pytest.approx(found[2])


def test_counters_that_jump_and_stand_still(reader: Reader) -> None:
    """A counter that jumps ahead, comes back or stands at zero never adds or hides energy."""
    found = reader(
        """
        clock = iter(10.0 * i for i in range(100))
        gpus.publish(0, 0.5, 0.5)
        reader = GpuReader(UUIDS[:1], deadline_s=5.0, now=lambda: next(clock))
        await reader.start()
        gpus.advance(1.0)
        first = await reader.read()
        begin_j = gpus.energy_j(0)
        for obedience in ("obey", "wrong", "obey", "ignore", "obey"):
            gpus.clear_faults(0)
            if obedience != "obey":
                gpus.inject(0, Fault(call="nvmlDeviceGetTotalEnergyConsumption", obedience=obedience))
            for _ in range(3):
                gpus.advance(10.0)
                await reader.read()
        account = reader.energy(UUIDS[0])
        return [account.total_j, gpus.energy_j(0) - begin_j,
                account.refused, account.resets, account.frozen]
        """,
        manual_time=True,
    )
    assert found[0] == pytest.approx(found[1], rel=0.02)
    assert found[2:] == [2, 2, 2]  # up twice, down twice, stood still for two readings


def test_no_setter_is_ever_called(reader: Reader) -> None:
    """Reading leaves no trace in the log of setters."""
    found = reader(
        """
        reader = GpuReader(UUIDS, deadline_s=5.0)
        await reader.start()
        for _ in range(5):
            await reader.read()
        reader.close()
        return len(gpus.setter_log())
        """
    )
    assert found == 0
