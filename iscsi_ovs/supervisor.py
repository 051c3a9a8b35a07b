"""``iscsi-ovs serve``: the volume server and the target as two processes, kept alive (CONTRACTS 9).

The supervisor binds the portals itself and hands them down, so a restarted target answers at the same address. A child
that dies is started again, at once the first time and with a growing delay after that; after five deaths of one child
in a minute it gives up, and its exit code says so. SIGTERM and SIGINT end the target first, then the volume server.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from iscsi_ovs.errors import Error

logger = logging.getLogger("iscsi_ovs.serve")

EXIT_GAVE_UP = 6
DEATHS_LIMIT = 5
DEATHS_WINDOW_S = 60.0
START_LIMIT_S = 60.0  # a child says that it is ready within this
STOP_LIMIT_S = 15.0  # … and ends within this after SIGTERM
_BACK_OFF_S = (0.0, 0.1, 0.5, 1.0, 2.0)


class StartError(Error):
    """A child did not come up; its own last words are on standard error."""


class Child:
    """One process that is to be there."""

    def __init__(self, name: str, command: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.name = name
        self._command = list(command)
        self._pass_fds = tuple(pass_fds)
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths: list[float] = []
        self.start_at: float | None = None  # when a dead one is started again

    def start(self) -> None:
        """Start, and return when it says that it is ready. Raises StartError."""
        reader, writer = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*self._command, "--ready-fd", str(writer)],
                pass_fds=(*self._pass_fds, writer),
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(writer)
        self.start_at = None
        try:
            self._wait_ready(reader)
        finally:
            os.close(reader)

    def _wait_ready(self, reader: int) -> None:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        if not poll.poll(START_LIMIT_S * 1000):
            self.stop()
            raise StartError(f"{self.name} was not ready within {START_LIMIT_S:.0f} s")
        if os.read(reader, 16) != b"ready\n":
            assert self.process is not None
            code = self.process.wait()
            raise StartError(f"{self.name} did not start (exit code {code}); its reason stands above")

    def died(self, now: float) -> bool:
        """Note a death. False: too many in a short time."""
        self.deaths = [at for at in self.deaths if now - at < DEATHS_WINDOW_S] + [now]
        self.start_at = now + _BACK_OFF_S[min(len(self.deaths), len(_BACK_OFF_S)) - 1]
        return len(self.deaths) < DEATHS_LIMIT

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
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
        self._writer.setblocking(False)
        self._stop_signal: int | None = None

    def install(self) -> None:
        """Take the signals over."""
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _stop(self, number: int, frame: object) -> None:
        self._stop_signal = number

    @property
    def is_stopping(self) -> bool:
        return self._stop_signal is not None

    def run(self) -> int:
        """Until a stop signal (0) or too many deaths (EXIT_GAVE_UP)."""
        poll = select.poll()
        poll.register(self._reader.fileno(), select.POLLIN)
        while not self.is_stopping:
            if not self._reap():
                return EXIT_GAVE_UP
            due = [child.start_at for child in self.children if child.start_at is not None]
            timeout = max(0.0, min(due) - time.monotonic()) * 1000 if due else None
            if poll.poll(timeout):
                self._reader.recv(4096)
        return 0

    def _reap(self) -> bool:
        for child in self.children:
            now = time.monotonic()
            if child.process is not None and child.process.poll() is not None and child.start_at is None:
                logger.error("%s (pid %d) died: %s", child.name, child.process.pid, _fate(child.process.returncode))
                if not child.died(now):
                    logger.error("%s died %d times in %.0f s: giving up", child.name, DEATHS_LIMIT, DEATHS_WINDOW_S)
                    return False
            if child.start_at is not None and now >= child.start_at:
                try:
                    child.start()
                    assert child.process is not None
                    logger.warning("%s runs again (pid %d)", child.name, child.process.pid)
                except StartError as error:
                    logger.error("%s", error)
                    if not child.died(time.monotonic()):
                        return False
        return True

    def stop_children(self) -> None:
        """The last one first: who depends on another goes before it."""
        for child in reversed(self.children):
            child.stop()


def _fate(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line of one of our own modules, with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def supervise(children: Sequence[Child], between: Callable[[int], None]) -> int:
    """Start ``children`` in order, call ``between(n)`` after the n-th is ready, and keep them alive. The exit code."""
    supervisor = Supervisor()
    supervisor.install()
    try:
        for number, child in enumerate(children):
            supervisor.children.append(child)
            child.start()
            if supervisor.is_stopping:
                return 0
            between(number)
        return supervisor.run()
    finally:
        supervisor.stop_children()
