"""Processes as /proc shows them: who descends from whom, what they cost, and how to end them for certain.

Everything here works by process id. Nothing is ever ended by its name.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on (the state), or None for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX"


def _everybody() -> Iterator[tuple[int, list[str]]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) is not None:
            yield int(entry), fields


def group(group_id: int) -> list[int]:
    """The members of a process group."""
    return [pid for pid, fields in _everybody() if int(fields[2]) == group_id]


def tree(pid: int) -> list[int]:
    """The process and all its descendants, the oldest generation first."""
    children: dict[int, list[int]] = {}
    for child, fields in _everybody():
        children.setdefault(int(fields[1]), []).append(child)
    found = [pid]
    for member in found:  # grows while it is walked
        found.extend(children.get(member, ()))
    return found


def command_line(pid: int) -> list[str]:
    """The argument vector, empty for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rstrip("\0").split("\0")


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these processes have used so far, with that of their reaped children."""
    ticks = 0
    for pid in pids:
        if (fields := _stat(pid)) is not None:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / CLOCK_TICKS


def wait_gone(pid: int, timeout_s: float) -> bool:
    """Waits until a process has ended, by its pidfd; False when the time is up."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def kill_all(pids: Iterable[int]) -> None:
    """kill -9 each, and wait until it is gone."""
    victims = list(pids)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in victims:
        wait_gone(pid, 5.0)


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Waits for a condition that announces itself nowhere, by looking every 20 ms."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(0.02)
