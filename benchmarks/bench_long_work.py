"""What a session waits while another one does long work: 4 KiB reads beside an UNMAP of 1 TiB and its kind.

One session keeps reading 4 KiB blocks, one at a time, of the same volume (of another one where the work takes the
volume away); the other does one kind of work after the other, on a volume of 1 TiB that has some GiB of data. Both are
testing.SocketInitiator against `iscsi-ovs serve`, in processes of their own. It fails where the 99th percentile of a
row is over 20 ms (WRITE SAME of data, at a disk's speed, is not judged).

    make bench-long                     on a disk and on tmpfs, about two minutes
    make bench-long ARGS='--quick'      less data
    python -m benchmarks.bench_long_work --directory /mnt --markdown
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import report
from benchmarks.report import GIB, MIB
from iscsi_ovs.testing.socket_initiator import SocketInitiator
from tests.interop.serving import IQN_PREFIX, Serve

BLOCK = 512
TIB = 1 << 40
KEPT_BYTES = 64 * MIB  # at the end of the volume: what is read meanwhile, and never taken away
LIMIT_S = 0.020
UNMAP_BLOCKS = 1 << 20  # MAXIMUM UNMAP LBA COUNT
WORK_LIMIT_S = 300.0
READER_ISID = b"\x80\x00\x00\x00\x00\x02"


# The reader ---------------------------------------------------------------------------------------------------------


def read_until(port: int, volume: str, first_block: int, blocks: int, end: Connection) -> None:
    """In a process of its own: read at random until told to stop; then say how long each read took."""
    took_s: list[float] = []
    with SocketInitiator("127.0.0.1", port, timeout_s=60, isid=READER_ISID) as initiator:
        initiator.login(IQN_PREFIX + volume)
        ready(initiator)
        end.send("reading")
        while not end.poll():
            lba = first_block + random.randrange(blocks // 8) * 8
            begun = time.perf_counter()
            result = initiator.command(struct.pack(">BBQIBB", 0x88, 0, lba, 8, 0, 0), read=8 * BLOCK)
            took_s.append(time.perf_counter() - begun)
            assert result.status == 0, result
        end.recv()
        end.send(took_s)


class Reader:
    """4 KiB reads of a volume's range, while the ``with`` lasts."""

    def __init__(self, serve: Serve, volume: str, first_block: int, blocks: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, other = context.Pipe()
        self._process = context.Process(target=read_until, args=(serve.address[1], volume, first_block, blocks, other))
        self.took_s: list[float] = []

    def __enter__(self) -> Reader:
        self._process.start()
        assert self._end.recv() == "reading"
        return self

    def __exit__(self, *_: object) -> None:
        self._end.send("stop")
        self.took_s = self._end.recv()
        self._process.join()


def ready(initiator: SocketInitiator) -> None:
    """Hear the unit attentions out."""
    while initiator.command(bytes(6)).status:
        pass


# The work -----------------------------------------------------------------------------------------------------------


def nothing(_initiator: SocketInitiator, _blocks: int) -> None:
    time.sleep(2)


def unmap(initiator: SocketInitiator, blocks: int) -> None:
    """As many UNMAP commands as it takes, eight at a time."""
    tags: list[int] = []
    for lba in range(0, blocks, UNMAP_BLOCKS):
        count = min(UNMAP_BLOCKS, blocks - lba)
        data = struct.pack(">HH4xQI4x", 22, 16, lba, count)
        tags.append(initiator.initiator.command(struct.pack(">B6xHx", 0x42, len(data)), write=data))
        if len(tags) >= 8:
            check(initiator, tags.pop(0))
    for tag in tags:
        check(initiator, tag)


def write_same_unmap(initiator: SocketInitiator, blocks: int) -> None:
    """All of it in one command."""
    cdb = struct.pack(">BBQIBB", 0x93, 0x08, 0, blocks, 0, 0)
    check(initiator, initiator.initiator.command(cdb, write=bytes(BLOCK)))


def write_same(initiator: SocketInitiator, _blocks: int) -> None:
    """4 GiB of a pattern, 32 MiB a command, four at a time."""
    count = 32 * MIB // BLOCK
    tags: list[int] = []
    for number in range(128):
        cdb = struct.pack(">BBQIBB", 0x93, 0, number * count, count, 0, 0)
        tags.append(initiator.initiator.command(cdb, write=b"\xa5" * BLOCK))
        if len(tags) >= 4:
            check(initiator, tags.pop(0))
    for tag in tags:
        check(initiator, tag)


def sanitize(initiator: SocketInitiator, _blocks: int) -> None:
    """BLOCK ERASE, answered when it is over."""
    check(initiator, initiator.initiator.command(struct.pack(">BB8x", 0x48, 0x02)))


def format_unit(initiator: SocketInitiator, _blocks: int) -> None:
    check(initiator, initiator.initiator.command(bytes((0x04, 0, 0, 0, 0, 0))))


def check(initiator: SocketInitiator, tag: int) -> None:
    result = initiator.wait(tag)
    if result.status:
        raise SystemExit(f"{result} failed: status {result.status:#x}, sense {result.sense.hex()}")


@dataclass(frozen=True, slots=True)
class Work:
    name: str
    do: Callable[[SocketInitiator, int], None]
    takes_volume: bool = False  # nothing can be read of it meanwhile
    is_judged: bool = True


WORKS = (
    Work("nothing", nothing),
    Work("UNMAP 1 TiB, 2048 commands × 8", unmap),
    Work("WRITE SAME of 1 TiB with UNMAP", write_same_unmap),
    Work("WRITE SAME, 4 GiB of a pattern", write_same, is_judged=False),  # a disk's speed, and whoever else wants it
    Work("FORMAT UNIT of 1 TiB", format_unit, takes_volume=True),
    Work("SANITIZE (block erase) of 1 TiB", sanitize, takes_volume=True),
)


def fill(path: Path, data_bytes: int) -> None:
    """Data in two places of the volume, and in what is kept; straight into its file."""
    piece = os.urandom(MIB)
    with path.open("rb+", buffering=0) as file:
        for start, length in ((0, data_bytes // 2), (TIB // 2, data_bytes // 2), (TIB - KEPT_BYTES, KEPT_BYTES)):
            for offset in range(start, start + length, MIB):
                os.pwrite(file.fileno(), piece, offset)
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class Row:
    where: str
    work: Work
    seconds: float
    took_s: list[float]

    @property
    def p99_s(self) -> float:
        return statistics.quantiles(self.took_s, n=100)[98]

    @property
    def name(self) -> str:
        return f"{self.work.name} ({self.where})"

    def cells(self) -> list[str]:
        times = (statistics.median(self.took_s), self.p99_s, max(self.took_s))
        return [
            self.name,
            f"{self.seconds:.2f} s",
            str(len(self.took_s)),
            *(f"{took_s * 1000:.2f} ms" for took_s in times),
        ]


HEAD = ("beside", "which took", "reads", "median", "99 %", "longest")


def measure(directory: Path, where: str, data_bytes: int) -> list[Row]:
    rows = []
    state = Path(tempfile.mkdtemp(prefix="ovs-long-", dir=directory))
    try:
        serve = Serve(state / "state", {"big": "1T", "small": "64M"})
        with serve:
            (path,) = state.rglob("big.raw")
            for work in WORKS:
                fill(path, data_bytes)
                rows.append(measure_one(serve, work, where))
    finally:
        shutil.rmtree(state)
    return rows


def measure_one(serve: Serve, work: Work, where: str) -> Row:
    blocks = (TIB - KEPT_BYTES) // BLOCK
    volume, first = ("small", 0) if work.takes_volume else ("big", blocks)
    reader = Reader(serve, volume, first, KEPT_BYTES // BLOCK)
    with SocketInitiator("127.0.0.1", serve.address[1], timeout_s=WORK_LIMIT_S) as initiator:
        initiator.login(IQN_PREFIX + "big")
        ready(initiator)
        with reader:
            begun = time.perf_counter()
            work.do(initiator, blocks)
            seconds = time.perf_counter() - begun
            time.sleep(max(0.0, 1 - seconds))  # a row of few reads says little
        initiator.logout()
    return Row(where, work, seconds, reader.took_s)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="512 MiB of data instead of 4 GiB")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument(
        "--directory", action="append", type=Path, help="where the volumes lie (default: a disk, tmpfs)"
    )
    arguments = parser.parse_args(argv)
    data_bytes = GIB // 2 if arguments.quick else 4 * GIB
    rows: list[Row] = []
    for directory in arguments.directory or [Path("/var/tmp"), Path("/dev/shm")]:
        if report.free_bytes(str(directory)) < 4 * data_bytes + 5 * GIB:
            print(f"{directory}: not enough room, left out", file=sys.stderr)
            continue
        rows += measure(directory, str(directory), data_bytes)
    print(report.machine())
    print(f"\n4 KiB reads, one at a time, beside work on 1 TiB with {data_bytes // GIB or 0.5} GiB of data:\n")
    print(report.table(HEAD, [row.cells() for row in rows], markdown=arguments.markdown))
    late = [row for row in rows if row.work.is_judged and row.p99_s > LIMIT_S]
    for row in late:
        print(f"over {LIMIT_S * 1000:.0f} ms: {row.name}", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
