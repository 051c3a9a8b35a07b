"""Debian's tgtd, a user-space target in C: the peer of the benchmarks, and what the harnesses prove themselves on.

tgtd ignores SIGTERM and would go on serving a deleted file on its port, so that the next run measures a ghost. It is
therefore ended by kill -9 of its pid, and its port is looked at before and after. Its control sockets are files in
/run/tgtd, shared by all network namespaces: the number of one is derived from our own pid.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.interop import processes
from tests.tools import require_tool

CONTROL_DIR = Path("/run/tgtd")

_instances = itertools.count()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_port_open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


class Tgtd:
    """One tgtd with a target for each file; `url(name)` is LUN 1 of it (LUN 0 is tgtd's controller)."""

    def __init__(
        self, portal: str, files: Mapping[str, Path], *, prefix: Sequence[str] = (), thin: bool = False
    ) -> None:
        self.tgtd = require_tool("tgtd", "tgt")
        self.tgtadm = require_tool("tgtadm", "tgt")
        self.portal = portal
        self.files = dict(files)
        self.prefix = list(prefix)
        self.thin = thin
        self.control = str(1 + (os.getpid() + next(_instances) * 4096) % 30000)
        self.command = [*self.prefix, self.tgtd, "-f", "--iscsi", f"portal={portal}", "-C", self.control]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def iqn(self, name: str) -> str:
        return f"iqn.2016-01.com.openvstorage:peer.{name}"

    def url(self, name: str) -> str:
        return f"iscsi://{self.portal}/{self.iqn(name)}/1"

    def processes(self) -> list[int]:
        return processes.tree(self.pid)

    def _admin(self, *arguments: str) -> None:
        command = [self.tgtadm, "-C", self.control, "--lld", "iscsi", *arguments]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"tgtd ended with code {self._process.returncode}: is its port taken? {self.portal}")
        with contextlib.suppress(subprocess.CalledProcessError):
            self._admin("--op", "show", "--mode", "target")
            return True
        return False

    def start(self) -> Tgtd:
        host, port = self.portal.rsplit(":", 1)
        if not self.prefix and is_port_open(host, int(port)):
            raise AssertionError(f"{self.portal} is served already: a tgtd that outlived its run?")
        CONTROL_DIR.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        processes.wait_until(self._answers, 10.0, "tgtd answers its control socket")
        for number, (name, path) in enumerate(self.files.items(), 1):
            target = ("--tid", str(number))
            self._admin("--op", "new", "--mode", "target", *target, "-T", self.iqn(name))
            self._admin("--op", "new", "--mode", "logicalunit", *target, "--lun", "1", "-b", str(path))
            if self.thin:
                params = ("--params", "thin_provisioning=1")
                self._admin("--op", "update", "--mode", "logicalunit", *target, "--lun", "1", *params)
            self._admin("--op", "bind", "--mode", "target", *target, "-I", "ALL")
        return self

    def stop(self) -> None:
        if self._process is None:
            return
        processes.kill_all(self.processes())
        self._process.wait(10)
        for leftover in CONTROL_DIR.glob(f"socket.{self.control}*"):
            leftover.unlink(missing_ok=True)
        host, port = self.portal.rsplit(":", 1)
        if not self.prefix and is_port_open(host, int(port)):
            raise AssertionError(f"{self.portal} is still served after tgtd was killed")

    def __enter__(self) -> Tgtd:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
