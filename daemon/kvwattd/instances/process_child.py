"""The last lines of ours in an instance: takes the member's lock, writes down who it is, becomes vLLM.

    python -I -S process_child.py FOLDER MEMBER NONCE DIRECTORY -- COMMAND [ARGUMENT...]

Run as a file with the standard library alone. It, and not kvwatt, writes the record of the process: kvwatt
may be killed between starting it and any line of its own. The lock stays with the process through exec and
goes with it, so a second start ends here, whoever asked for it.
"""

import errno
import fcntl
import json
import os
import signal
import sys
import time

LOCK_PATIENCE_S = 2.0  # a look at the lock holds it for microseconds
EXIT_TAKEN = 75
EXIT_CANCELLED = 76
EXIT_CANNOT_RUN = 127


def main() -> int:
    """Does not return where all goes well."""
    folder, member, nonce, directory = sys.argv[1:5]
    command = sys.argv[6:]
    descriptor = _lock(os.path.join(folder, f"{member}.lock"))  # noqa: PTH118  # no pathlib: half the start-up
    if descriptor is None:
        return EXIT_TAKEN
    # Looked at under the lock: who removes the intent after this line finds the lock taken, and waits.
    if _intended(os.path.join(folder, f"{member}.start")) != nonce:  # noqa: PTH118
        return EXIT_CANCELLED
    pid_path = os.path.join(folder, f"{member}.pid")  # noqa: PTH118
    _write(
        pid_path,
        {"pid": os.getpid(), "ticks": start_ticks(os.getpid()), "boot_id": boot_id(), "nonce": nonce},
    )
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(descriptor, True)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and exec would pass that on
        signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(directory)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        reason = f"cannot run {command[0]!r} in {directory}: {error.strerror}"
        _write(os.path.join(folder, f"{member}.failed"), {"reason": reason})  # noqa: PTH118
        os.unlink(pid_path)  # noqa: PTH108
        return EXIT_CANNOT_RUN


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot: with the number it names one process for ever."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        return int(file.read().rpartition(b")")[2].split()[19])


def boot_id() -> str:
    """Empty where a sandbox hides it."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return ""


def _lock(path: str) -> "int | None":
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    until_s = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR) or time.monotonic() > until_s:
                return None
            time.sleep(0.02)
        else:
            return descriptor


def _intended(path: str) -> "str | None":
    try:
        with open(path) as file:  # noqa: PTH123
            return str(json.load(file)["nonce"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(path: str, content: "dict[str, object]") -> None:
    """Whole or not at all, and on the disk before anything else happens."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w") as file:  # noqa: PTH123
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)  # noqa: PTH105


if __name__ == "__main__":
    sys.exit(main())
