"""A guest kernel as the client of a vhost-user device: User Mode Linux, and fio in it, one point after the other.

The guest boots once and waits for points; several guests may be up and take turns. What it costs is what its processes
cost the host, without what starting fio costs there (measured by fio runs of one request). Its own RAM disk, driven by
the same fio, says what of that is the guest itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmarks import fio
from benchmarks.load import Moved, Shape
from tests.guest.uml import Guest, GuestNetwork
from tests.interop import processes

ENGINE = "io_uring"  # in the guest it is the fastest
RAM_DISK, DISK = "/dev/ram0", "/dev/vda"
RAM_DISK_KIB = 64 << 10
BOOT_LIMIT_S, POINT_LIMIT_S = 30, 30

# Waits without a process of its own: `read` with a time limit, on what never has anything.
SCRIPT = """
modprobe -a virtio_blk
modprobe brd rd_nr=1 rd_size=@KIB@
mkfifo /run/never
exec 9<>/run/never
say up
number=0
until told over; do
    if told $number; then
        bash @DIRECTORY@/point.$number >@DIRECTORY@/fio.$number 2>&1 || true
        say "done $number,"
        number=$((number + 1))
    else
        read -t 0.2 -u 9 || true
    fi
done
"""


class GuestDisk:
    """A booted guest; ``with`` it."""

    def __init__(self, network: GuestNetwork, directory: Path, arguments: Sequence[str]) -> None:
        self._guest = Guest(network, directory, arguments=arguments)
        self._directory = directory
        self._number = 0

    def __enter__(self) -> GuestDisk:
        self._guest.start(SCRIPT.replace("@KIB@", str(RAM_DISK_KIB)).replace("@DIRECTORY@", str(self._directory)))
        try:
            self._guest.wait_for("guest: up", BOOT_LIMIT_S)
        except BaseException:
            self._guest.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._guest.tell("over")
        self._guest.finish(20)

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(processes.group(self._guest.pid))

    def run(self, shape: Shape, path: str, size_bytes: int, seconds: float) -> Moved:
        """fio in the guest."""
        argv = fio.command(shape, path, size_bytes, seconds, ENGINE)
        return fio.parse(self._point(argv), shape)

    def start_fio(self) -> None:
        """All that fio does but for I/O, to see what it costs."""
        self._point(
            [*fio.command(Shape("read", 4096, 1), RAM_DISK, RAM_DISK_KIB << 10, 0.001, ENGINE), "--number_ios=1"]
        )

    def _point(self, argv: Sequence[str]) -> str:
        number, self._number = self._number, self._number + 1
        (self._directory / f"point.{number}").write_text(shlex.join(argv) + "\n")
        self._guest.tell(str(number))
        self._guest.wait_for(f"guest: done {number},", POINT_LIMIT_S)
        return (self._directory / f"fio.{number}").read_text()
