"""QEMU's qcow2 with internal snapshots, as a peer of ours: images in a tmpfs, behind qemu-storage-daemon.

An internal snapshot copies the image's first table and counts one more reference of every cluster; the list of all
snapshots is written anew with each. So making many takes long, and it is bounded in time here.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import pasts
from benchmarks.qemu import QemuDaemon
from benchmarks.report import MIB
from tests.interop import initiators


class Qcow2:
    """An image with the defaults of `qemu-img create`, every byte of it written unless it is left sparse."""

    def __init__(self, directory: Path, size_bytes: int, *, is_sparse: bool = False) -> None:
        directory.mkdir(parents=True)
        self._size_bytes = size_bytes
        self._directory = directory
        self._path = directory / "image.qcow2"
        initiators.run("qemu-img", "create", "-q", "-f", "qcow2", str(self._path), str(size_bytes))
        if not is_sparse:
            writes = [f"write -q -P 165 {offset} {MIB}" for offset in range(0, size_bytes, MIB)]
            self._write("qcow2", str(self._path), writes)

    def served(self) -> QemuDaemon:
        return QemuDaemon(self._directory / "daemon", self._path, "qcow2", {"type": "nbd"})

    def add_past(self, daemon: QemuDaemon, snapshots: int, seconds: float) -> int:
        """The map SCATTERED, as far as the time suffices; returns how many snapshots that were."""
        deadline = time.monotonic() + seconds
        with initiators.QemuShell(daemon.url) as shell:
            plan = pasts.pages_between(pasts.SCATTERED, self._size_bytes // pasts.PAGE_BYTES, snapshots)
            for number, pages in enumerate(plan):
                for page in pages:
                    shell.ask(f"write -q -P {page % 255 + 1} {page * pasts.PAGE_BYTES} {pasts.PAGE_BYTES}")
                daemon.snapshot(f"s{number}")
                if time.monotonic() > deadline:
                    return number + 1
        return snapshots

    def _write(self, image_format: str, image: str, commands: list[str]) -> None:
        arguments = [word for each in commands for word in ("-c", each)]
        initiators.run("qemu-io", "-f", image_format, *arguments, image)
