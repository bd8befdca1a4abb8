"""What others send or change: the tap's records, the configuration, a second daemon."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import msgspec
from daemon_process import PATIENCE_S, eventually
from fault_stage import Stage
from scenario import Scenario, becomes, grows

from kvwattd.vllm_plugin.wire import VERSION, Record

FLOOD_S = 2.0
RECORD = Record(VERSION, 1, 0.0, 77, 1, "sim", "sim", 0, 3, 0, 0.25, 0.02, 3, 0.06, 3, 0, None, 0, 3, 0, 0)


def send(stage: Stage, datagrams: list[bytes], for_s: float) -> int:
    """As fast as the socket takes them, each at least once; how many it took."""
    taken, until_s = 0, time.monotonic() + for_s
    last_s = until_s + PATIENCE_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as tap:
        tap.setblocking(False)
        tap.connect(str(stage.daemon.folder / "tap.sock"))
        waiting = set(datagrams)
        while time.monotonic() < (last_s if waiting else until_s):
            for datagram in datagrams:
                try:
                    tap.send(datagram)
                except (BlockingIOError, ConnectionRefusedError):
                    time.sleep(0)
                else:
                    taken += 1
                    waiting.discard(datagram)
    return taken


def flood(stage: Stage) -> None:
    """Records as fast as one core can write them, of many senders."""
    many = [msgspec.structs.replace(RECORD, sender=n, sequence=n) for n in range(500)]
    ticks, skipped = (stage.daemon.status()[name] for name in ("ticks_total", "ticks_skipped_total"))
    assert send(stage, [msgspec.msgpack.encode(record) for record in many], FLOOD_S) > 1000
    after = stage.daemon.status()
    assert after["ticks_total"] > ticks, (ticks, skipped, after["ticks_total"])


def bad_records(stage: Stage) -> None:
    send(stage, [b"\xc1" * 40, b"", b"\x93\x01\x02\x03", b"x" * 60_000], 0.3)


def old_version(stage: Stage) -> None:
    send(stage, [msgspec.msgpack.encode(msgspec.structs.replace(RECORD, version=VERSION + 7))], 0.3)


def broken_configuration(stage: Stage) -> None:
    """Edited while running, with a value that is out of range."""
    text = stage.daemon.config.read_text()
    stage.daemon.config.write_text(text.replace("lease_s = ", "lease_s = -"))
    stage.daemon.hang_up()


def sound_configuration(stage: Stage) -> None:
    text = stage.daemon.config.read_text()
    stage.daemon.config.write_text(text.replace("lease_s = -", "lease_s = "))
    stage.daemon.hang_up()
    eventually(lambda: stage.daemon.metric("kvwatt_config_reload_success") == 1.0, stage.daemon.describe)


def second_daemon(stage: Stage) -> None:
    """Another one with the same state folder ends at once with status 2 and touches nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "kvwattd", "run", "--config", str(stage.daemon.config)],
        env=stage.daemon.environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "in use by another kvwatt daemon" in done.stderr, done.stderr


SCENARIOS = (
    Scenario("tap flooded", flood, None, grows("kvwatt_tap_records_total"), ""),
    Scenario(
        "tap sends bad records",
        bad_records,
        None,
        grows("kvwatt_tap_refused_total", cause="malformed"),
        "tap: record refused: ",
    ),
    Scenario(
        "tap of an old version",
        old_version,
        None,
        grows("kvwatt_tap_refused_total", cause="version"),
        "tap: record refused: version: ",
    ),
    Scenario(
        "broken configuration, SIGHUP",
        broken_configuration,
        None,
        becomes(0.0, "kvwatt_config_reload_success"),
        "the old one stays in force: guard.lease_s",
        sound_configuration,
    ),
    Scenario(
        "two daemons at once", second_daemon, None, becomes(1.0, "kvwatt_guard_state", state="connected"), ""
    ),
)
