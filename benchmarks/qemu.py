"""QEMU's block layer in C: its storage daemon, the peer of the interfaces and of the snapshots, and `qemu-img bench`.

One daemon has one image and one export. It is driven by QMP on a Unix socket and ended by its pid. The image's node is
named IMAGE, whatever its format. `qemu-img bench` knows no random order, but steps that are longer than its blocks and
begin anew at the image's end: with a step that has no divisor in common with the image every block comes once, and no
two neighbours one behind the other.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.load import Moved, Shape
from tests.interop import initiators, processes
from tests.interop.serving import environment
from tests.tools import require_tool

IMAGE = "image"
STRIDE = 1_237  # blocks from one to the next; a prime, so it divides no image of another number of blocks


def bench_command(url: str, shape: Shape, count: int, *, is_random: bool) -> list[str]:
    """`qemu-img bench` without a page cache on its side."""
    write = ["-w"] if shape.kind == "write" else []
    step = ["-S", str(STRIDE * shape.block_bytes)] if is_random else []
    what = ["-d", str(shape.depth), "-s", str(shape.block_bytes), "-c", str(count)]
    return ["qemu-img", "bench", *write, *what, *step, "-t", "none", "-f", "raw", url]


def bench(url: str, shape: Shape, count: int, *, is_random: bool) -> Moved:
    """Runs it; so many requests, and the time that it says they took."""
    argv = bench_command(url, shape, count, is_random=is_random)
    said = initiators.run(*argv, timeout_s=120)
    if (completed := re.search(r"Run completed in ([\d.]+) seconds", said)) is None:
        raise initiators.InitiatorError(f"{shlex.join(argv)} said nothing of its time: {said[-300:]}")
    return Moved(count, max(float(completed[1]), 0.001))


class DaemonError(AssertionError):
    """QEMU's storage daemon did not do what was asked."""


class QemuDaemon:
    """A running qemu-storage-daemon; ``export`` are the properties of an export of the image, without id and node."""

    def __init__(
        self,
        directory: Path,
        image: Path,
        image_format: str,
        export: Mapping[str, str],
        *,
        arguments: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._qmp_path = directory / "qmp.sock"
        self._log_path = directory / "log"
        self._ready_path = directory / "pid"
        self.nbd_path = directory / "nbd.sock"
        properties = ",".join(f"{key}={value}" for key, value in export.items())
        blockdevs = ["--blockdev", f"driver=file,filename={image},node-name=file"]
        blockdevs += ["--blockdev", f"driver={image_format},file=file,node-name={IMAGE},discard=unmap"]
        if export["type"] == "nbd":
            blockdevs += ["--nbd-server", f"addr.type=unix,addr.path={self.nbd_path}"]
        self.command = [
            require_tool("qemu-storage-daemon", "qemu-utils"),
            *blockdevs,
            *("--export", f"id=export,node-name={IMAGE},writable=on,{properties}"),
            *("--chardev", f"socket,id=qmp,path={self._qmp_path},server=on,wait=off", "--monitor", "chardev=qmp"),
            *("--pidfile", str(self._ready_path)),
            *arguments,
        ]

    def __enter__(self) -> QemuDaemon:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )
        try:
            processes.wait_until(self._is_up, 10, "qemu-storage-daemon is up")
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(os.fspath(self._qmp_path))
            self._lines = self._socket.makefile("rw")
            self._lines.readline()
            self.ask("qmp_capabilities")
        except BaseException:
            self._kill()
            raise
        return self

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise DaemonError(f"qemu-storage-daemon ended: {self._log_path.read_text(errors='replace')[-500:]}")
        return self._ready_path.exists()  # written when everything else has been set up

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
        self._process.terminate()  # which ends exports and mounts
        try:
            self._process.wait(20)
        finally:
            self._kill()

    def _kill(self) -> None:
        processes.kill_all([self._process.pid])
        self._process.wait(10)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        """Of the NBD export."""
        return f"nbd+unix:///{IMAGE}?socket={self.nbd_path}"

    def ask(self, command: str, **arguments: Any) -> Any:
        """A QMP command, and what it returns."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise DaemonError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise DaemonError(f"{command}: qemu-storage-daemon ended")

    def snapshot(self, name: str) -> None:
        """An internal snapshot of a qcow2 image."""
        self.ask("blockdev-snapshot-internal-sync", device=IMAGE, name=name)
