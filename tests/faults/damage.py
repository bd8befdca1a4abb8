"""Memory, disk, descriptors and wall clock of a running process, taken away and given back."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OOM_LIMIT_BYTES = 64 << 10
STANDARD_STREAMS = 3  # the limit is on numbers: any other that is closed cannot be had again
_SHIFT_C = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static double shift(void) {
    static volatile double *seconds;
    if (!seconds) {
        const char *path = getenv("SHIFT_FILE");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *mapped = fd < 0 ? MAP_FAILED : mmap(0, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
        if (fd >= 0) close(fd);
        if (mapped == MAP_FAILED) return 0;
        seconds = mapped;
    }
    return *seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int rc = real(id, now);
    if (!rc && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += (time_t)shift();
    return rc;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
"""


class NotPossibleHere(Exception):  # noqa: N818 (a fact about this machine)
    """This machine does not allow the damage; the message says why."""


class WallClock:
    """The wall clock of processes started with `environment()`; it jumps when told."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "shift"
        self._library = folder / "shift.so"
        self._write(0.0)
        source = folder / "shift.c"
        source.write_text(_SHIFT_C)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self._library, source, "-ldl"], check=True)

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "SHIFT_FILE": str(self._file)}

    def jump(self, seconds: float) -> None:
        """Set it this far from the true time."""
        self._write(seconds)

    def _write(self, seconds: float) -> None:
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


class SmallDisk:
    """A file system of its own that can be filled to the last byte."""

    def __init__(self, folder: Path, size: str = "16m") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "kvwatt-test", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.mounted = done.returncode == 0
        self._why = done.stderr.strip()

    def fill(self) -> None:
        """Leave no byte free. Raises NotPossibleHere."""
        if not self.mounted:
            raise NotPossibleHere(f"a small file system needs root: {self._why}")
        with (self._folder / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def free(self) -> None:
        (self._folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self._folder)], check=False)


def take_descriptors(pid: int) -> None:
    """Let the process open nothing more, whatever it closes; what is open stays open."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (STANDARD_STREAMS, _hard(pid)))


def give_descriptors(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (_hard(pid), _hard(pid)))


def _hard(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]


def run_out_of_memory(
    process: subprocess.Popen[bytes], occupy: Callable[[], object], within_s: float = 20.0
) -> float:
    """Put the process where there is no memory left, and let it need some; when the kernel killed it.

    Raises NotPossibleHere.
    """
    group = _memory_group()
    killed = threading.Event()
    busy = threading.Thread(target=_repeat, args=(occupy, killed))
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        busy.start()
        return _death_s(process, within_s)
    finally:
        killed.set()
        busy.join()
        if process.poll() is None:
            (group.parent / "cgroup.procs").write_text(str(process.pid))
        group.rmdir()


def _repeat(occupy: Callable[[], object], until: threading.Event) -> None:
    while not until.is_set():
        with contextlib.suppress(Exception):  # the process ends in the middle of an answer
            occupy()


def _death_s(process: subprocess.Popen[bytes], within_s: float) -> float:
    until_s = time.monotonic() + within_s
    while process.poll() is None:
        if time.monotonic() > until_s:
            raise NotPossibleHere(f"the kernel did not kill it within {within_s:g} s")
        time.sleep(0.001)
    return time.monotonic()


def _memory_group() -> Path:
    """A control group with next to no memory, under version 1 or 2."""
    old = CGROUP / "memory"
    group = (old if old.is_dir() else CGROUP) / f"kvwatt-test-{os.getpid()}"
    try:
        group.mkdir(exist_ok=True)
        limit = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
        (group / limit).write_text(str(OOM_LIMIT_BYTES))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        raise NotPossibleHere(f"a control group of its own: {error}") from error
    return group
