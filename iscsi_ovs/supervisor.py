"""``iscsi-ovs serve``: the volume server and the target as two processes, kept alive (CONTRACTS 9).

The supervisor binds the portals itself and hands them down, so a restarted target answers at the same address. A child
that dies is started again, at once the first time and with a growing delay after that; after five deaths of one child
in a minute it gives up, and its exit code says so. Nothing here waits for one child only: a target that can't get ready
because its volume server has just died must not keep that from being started. SIGTERM and SIGINT end the target first,
then the volume server. If the supervisor itself is killed, the kernel kills its children: they would hold the pool.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from iscsi_ovs.errors import ConfigurationError, Error

logger = logging.getLogger("iscsi_ovs.serve")

EXIT_GAVE_UP = 6
EXIT_USAGE = 2  # of a child, and then ours: what it was told can't be obeyed
DEATHS_LIMIT = 5
DEATHS_WINDOW_S = 60.0
START_LIMIT_S = 60.0  # a child says that it is ready within this
STOP_LIMIT_S = 15.0  # … and ends within this after SIGTERM
_BACK_OFF_S = (0.0, 0.1, 0.5, 1.0, 2.0)
_READY = b"ready\n"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StartError(Error):
    """A child did not come up; its own last words are on standard error."""


class GaveUpError(Error):
    """A child dies again and again."""


class Child:
    """One process that is to be there."""

    def __init__(self, name: str, command: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.name = name
        self._command = list(command)
        self._pass_fds = tuple(pass_fds)
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths: list[float] = []
        self.start_at: float | None = None  # when a dead one is started again
        self.ready_fd = -1  # it says there that it is ready; -1 once it has, or can't any more
        self.ready_by = 0.0
        self.is_ready = False
        self.has_run = False  # it was ready once
        self.takes_hang_up = False  # SIGHUP is passed on to it
        self._was_hung_up = False  # … when it is ready: until then the signal would kill it

    def spawn(self, now: float) -> None:
        """Start it; ``ready_fd`` becomes readable when it is ready, or gone."""
        self.ready_fd, writer = os.pipe()
        self.is_ready = False
        self.start_at = None
        self.ready_by = now + START_LIMIT_S
        try:
            self.process = subprocess.Popen(
                [*self._command, "--ready-fd", str(writer)],
                pass_fds=(*self._pass_fds, writer),
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - this process has one thread
            )
        finally:
            os.close(writer)

    def hear(self) -> bool:
        """``ready_fd`` is readable. True: it is ready."""
        self.is_ready = os.read(self.ready_fd, 16) == _READY
        self.has_run = self.has_run or self.is_ready
        self.forget_ready_fd()
        if self.is_ready and self._was_hung_up:
            self.hang_up()
        return self.is_ready

    def hang_up(self) -> None:
        """Pass SIGHUP on, to its successor if it is dead."""
        process = self.process
        if self.is_ready and process is not None and process.poll() is None:
            self._was_hung_up = False
            process.send_signal(signal.SIGHUP)
        else:
            self._was_hung_up = True

    def forget_ready_fd(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def died(self, now: float) -> bool:
        """Note a death. False: too many in a short time."""
        self.is_ready = False
        self.forget_ready_fd()
        self.deaths = [at for at in self.deaths if now - at < DEATHS_WINDOW_S] + [now]
        self.start_at = now + _BACK_OFF_S[min(len(self.deaths), len(_BACK_OFF_S)) - 1]
        return len(self.deaths) < DEATHS_LIMIT

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.forget_ready_fd()
        process = self.process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            logger.error("%s did not stop within %.0f s: killed", self.name, STOP_LIMIT_S)
            process.kill()
            process.wait()


class Supervisor:
    """Keeps children alive until a signal says otherwise."""

    def __init__(self) -> None:
        self.children: list[Child] = []  # in the order in which they need each other
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._stop_signal: int | None = None
        self._is_hung_up = False
        self._before: list[tuple[int, Any]] = []
        self._wakeup_before = -1

    def install(self) -> None:
        """Take the signals over."""
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before.append((number, signal.signal(number, self._stop)))
        self._before.append((signal.SIGCHLD, signal.signal(signal.SIGCHLD, _wake_up)))

    def take_hang_up(self) -> None:
        """SIGHUP is not our end, but something for the children that take it."""
        self._before.append((signal.SIGHUP, signal.signal(signal.SIGHUP, self._hang_up)))

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        self._is_hung_up = True

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._before:
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        self._before.clear()
        self._reader.close()
        self._writer.close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_signal = number

    @property
    def is_stopping(self) -> bool:
        return self._stop_signal is not None

    def start(self, child: Child) -> bool:
        """Start a child after those that are there, and wait until it is ready. False: stopped meanwhile."""
        self.children.append(child)
        child.spawn(time.monotonic())
        while not child.has_run and not self.is_stopping:
            self._turn()
        return not self.is_stopping

    def run(self) -> None:
        """Until a stop signal. Raises GaveUpError."""
        while not self.is_stopping:
            self._turn()

    def _turn(self) -> None:
        """See who has died, start who is due, and wait until something happens."""
        for child in self.children:
            self._look_after(child, time.monotonic())
        if self._is_hung_up:
            self._is_hung_up = False
            for child in self.children:
                if child.takes_hang_up:
                    child.hang_up()
        if self.is_stopping:
            return
        talking = {child.ready_fd: child for child in self.children if child.ready_fd >= 0}
        poll = select.poll()
        for fd in (self._reader.fileno(), *talking):
            poll.register(fd, select.POLLIN)
        due = [child.start_at if child.start_at is not None else child.ready_by
               for child in self.children if not child.is_ready]  # fmt: skip
        timeout_ms = max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None
        for fd, _ in poll.poll(timeout_ms):
            if fd == self._reader.fileno():
                with contextlib.suppress(BlockingIOError):
                    self._reader.recv(4096)
                continue
            child = talking[fd]
            if child.hear() and child.deaths:
                assert child.process is not None
                logger.warning("%s runs again (pid %d)", child.name, child.process.pid)

    def _look_after(self, child: Child, now: float) -> None:
        process = child.process
        if child.start_at is not None:
            if now >= child.start_at:
                child.spawn(now)
        elif process is not None and process.poll() is not None:
            self._bury(child, process, now)
        elif not child.is_ready and now >= child.ready_by:
            sentence = f"{child.name} was not ready within {START_LIMIT_S:.0f} s"
            if not child.has_run:
                raise StartError(sentence)
            logger.error("%s: killed", sentence)
            assert process is not None
            process.kill()
            child.ready_by = now + START_LIMIT_S  # its death is next

    def _bury(self, child: Child, process: subprocess.Popen[bytes], now: float) -> None:
        fate = _fate(process.returncode)
        if not child.has_run:
            error = ConfigurationError if process.returncode == EXIT_USAGE else StartError
            raise error(f"{child.name} did not start ({fate}); its reason stands above")
        logger.error("%s (pid %d) died: %s", child.name, process.pid, fate)
        if not child.died(now):
            raise GaveUpError(f"{child.name} died {DEATHS_LIMIT} times in {DEATHS_WINDOW_S:.0f} s: giving up")

    def stop_children(self) -> None:
        """The last one first: who depends on another goes before it."""
        for child in reversed(self.children):
            child.stop()


def _wake_up(number: int, frame: FrameType | None) -> None:
    """There is a handler, so the signal's number goes to the wakeup descriptor."""


def _die_with(parent_pid: int) -> Callable[[], None]:
    """What a child does before it becomes its program: ask to be killed when its parent dies."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it has died already
            os._exit(1)

    return ask


def _fate(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line of one of our own modules, with this interpreter.

    -m looks for every module in the working directory first, whoever may write there (it may be /tmp, and we root). We
    keep it from that by -P, unless we were found so ourselves.
    """
    is_from_here = not {"", os.getcwd()}.isdisjoint(sys.path)
    return [sys.executable, *([] if is_from_here else ["-P"]), "-m", module, *arguments]


def supervise(children: Sequence[Child], between: Callable[[int], None]) -> int:
    """Start ``children`` in order, call ``between(n)`` after the n-th is ready, and keep them alive. The exit code."""
    supervisor = Supervisor()
    supervisor.install()
    if any(child.takes_hang_up for child in children):
        supervisor.take_hang_up()
    try:
        for number, child in enumerate(children):
            if not supervisor.start(child):
                return 0
            between(number)
        supervisor.run()
    except GaveUpError as error:
        logger.error("%s", error)
        return EXIT_GAVE_UP
    finally:
        supervisor.stop_children()
        supervisor.close()
    return 0
