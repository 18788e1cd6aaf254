"""The guard of one command: the small process between the proxy and what it runs.

The rule: when the guard ends, nothing of the command is left, workers that took a session of their own included,
and the guard ends when the command does or when the proxy does, however that happened. So the proxy may be
killed with SIGKILL, and the end of the guard means that what the command held (a GPU) is free.

    usage: process_guard.py COMMAND [ARGUMENT ...]

    stdin   the lifeline: at its end everything is killed, for the proxy is gone or wants so
    stdout  reports, a line each: `started PID`, `refused ERRNO`, `exited STATUS`, `killed SIGNAL`
    stderr  what the command writes, to both of its streams

A signal that asks for an end (SIGTERM, say) is passed on to the command's process group. This is a program of the
standard library alone and is started by its path with `python -I -S`, for it stands in the way of every start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Ignored by every Python process, and inherited as such by what it starts.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_RETRY_SECONDS = 0.1


def guard(argv: list[str]) -> int:
    """Run the command to its end and return the exit status that a shell would give it."""
    # Whatever loses its parent becomes a child of the guard, so that nothing can get out of its sight.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    wakeups = _wakeups()
    started = _start(argv)
    if isinstance(started, OSError):
        _report(f"refused {started.errno}")
        return 127
    _report(f"started {started}")
    _pass_signals_on(started)
    ended = _until_the_end(started, wakeups)
    if ended is not None:
        _report(f"exited {ended.si_status}" if ended.si_code == os.CLD_EXITED else f"killed {ended.si_status}")
    _kill_all(started, wakeups)
    if ended is None:
        return 128 + signal.SIGKILL
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def _start(argv: list[str]) -> int | OSError:
    """Start the command in a session of its own and return its process id, or why it could not be executed."""
    # The write end is closed by a successful exec: then there is nothing to read.
    errors, error = os.pipe()
    guard_pid = os.getpid()
    pid = os.fork()
    if not pid:
        _become(argv, guard_pid, error)
    os.close(error)
    number = os.read(errors, 16)
    os.close(errors)
    if not number:
        return pid
    os.waitpid(pid, 0)
    return OSError(int(number), os.strerror(int(number)))


def _become(argv: list[str], guard_pid: int, error: int) -> None:
    """Turn this process into the command; never returns."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:
            os._exit(1)  # the guard died before it could be heard of
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        os.execvp(argv[0], argv)  # noqa: S606 - the user's own command, without a shell on purpose
    except OSError as trouble:
        os.write(error, str(trouble.errno).encode())
    finally:
        os._exit(127)


def _wakeups() -> int:
    """Make each signal that has a handler readable on the descriptor returned."""
    wakeups, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wakeups, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wakeups


def _pass_signals_on(child: int) -> None:
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: _kill_group(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)


def _until_the_end(child: int, wakeups: int) -> os.waitid_result | None:
    """Wait for the end of the command and return it, or None if the lifeline ended first."""
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(wakeups, select.POLLIN)
    while (ended := _reap_others(child)) is None:
        for descriptor, _ in poller.poll():
            if not os.read(descriptor, 4096):
                return None
    return ended


def _reap_others(child: int) -> os.waitid_result | None:
    """Reap adopted processes; the command's own end is only looked at, so that its number is not given anew."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if ended.si_pid == child:
            return ended
        os.waitpid(ended.si_pid, 0)
    return None


def _kill_all(child: int, wakeups: int) -> None:
    """Kill until there is nothing left: whoever loses its parent to this becomes a child here, and is next."""
    _kill_group(child, signal.SIGKILL)
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    while _has_children():
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        select.select([wakeups], [], [], _RETRY_SECONDS)
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)


def _has_children() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    # Not /proc/self/task/*/children: kernels are built without it.
    numbers = (name for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - pathlib is slow to import
    return [int(number) for number in numbers if _parent(number) == os.getpid()]


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - as above
            # The name stands in parentheses and may hold anything: the fields begin after the last of them.
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _kill_group(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, number)


def _report(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
