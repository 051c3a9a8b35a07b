"""What a snapshot, a clone and opening cost, and the server's memory: the second half of bench_snapshots.

All of it is asked for as a client asks, so the times have a wake-up of the server and the answer in them. Medians of
REPEATS. On a tmpfs to make data durable costs nothing; what it costs on a disk, and whom, is measured apart.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.load import Load, Shape, fill, in_order, size_name
from benchmarks.qcow2 import Qcow2
from benchmarks.report import GIB, KIB, MIB
from iscsi_ovs import shm_client
from tests.interop import initiators
from tests.interop.serving import Serve

TIB = 1 << 40
SIZES = (GIB, TIB, 64 * TIB)
REPEATS = 9
SPARSE_PAGES = 500  # written, at random places, into each volume of one of the sizes
DIRTY_BYTES = 256 * MIB
WRITTEN_BYTES = 2 * GIB
STRIDE_BYTES = 16 * MIB

Table = tuple[list[str], list[list[str]]]  # head, rows


def costs(serve: Serve, names: Sequence[str], directory: Path, options: argparse.Namespace) -> None:
    with shm_client.Context(state_dir=serve.state_dir) as context:
        report.say("what opening, a snapshot and a clone cost by number of snapshots")
        show(by_count(context, names), options)
        report.say("… and by size")
        show(by_size(context, directory), options)
    report.say("a snapshot beside a sync, on a disk")
    show(beside_a_sync(options), options)
    report.say("the server's memory")
    show(memory(directory, options), options)


def show(table: Table, options: argparse.Namespace) -> None:
    print(report.table(*table, markdown=options.markdown), "\n")


def milliseconds(act: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    act(*arguments)
    return (time.perf_counter() - started) * 1e3


def median_of(act: Callable[[int], object]) -> float:
    return statistics.median(milliseconds(act, number) for number in range(REPEATS))


def shown(value: float) -> str:
    return f"{value:.2f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def by_count(context: shm_client.Context, names: Sequence[str]) -> Table:
    """By how many snapshots a volume has. The server has just been started: nothing is known to it yet."""
    return ["volume (map-snapshots)", "first open", "open again", "snapshot", "clone"], [
        [name, *map(shown, of_volume(context, name))] for name in names
    ]


def of_volume(context: shm_client.Context, name: str) -> tuple[float, float, float, float]:
    def open_it(_: int = 0) -> None:
        context.open(name).close()

    first, again = milliseconds(open_it), median_of(open_it)
    with context.open(name):
        snapshot = median_of(lambda number: context.create_snapshot(name, f"costs-{number}"))
    return first, again, snapshot, clones(context, name, "costs-0")


def clones(context: shm_client.Context, name: str, snapshot: str) -> float:
    return median_of(lambda number: context.clone_volume(name, snapshot, f"{name}-clone-{number}"))


def by_size(context: shm_client.Context, directory: Path) -> Table:
    """By size, sparse volumes."""
    rows = [[size_name(each), *map(shown, of_size(context, directory, each))] for each in SIZES]
    return [f"size ({SPARSE_PAGES} pages written)", "snapshot", "clone", "qcow2 snapshot"], rows


def of_size(context: shm_client.Context, directory: Path, size_bytes: int) -> tuple[float, float, float]:
    name = f"sized-{size_bytes >> 30}"
    context.create_volume(name, size_bytes)
    chance = random.Random(1)
    offsets = [chance.randrange(size_bytes // 4096) * 4096 for _ in range(SPARSE_PAGES)]
    with context.open(name) as volume:
        load = Load(context, volume, Shape("write", 4 * KIB, 8))
        load.run_once(offsets)
        load.close()
        snapshot = median_of(lambda number: context.create_snapshot(name, f"s{number}"))
    return snapshot, clones(context, name, "s0"), qcow2_snapshot(directory / name, size_bytes, offsets)


def qcow2_snapshot(directory: Path, size_bytes: int, offsets: Sequence[int]) -> float:
    with Qcow2(directory, size_bytes, is_sparse=True).served() as daemon:
        with initiators.QemuShell(daemon.url) as shell:
            for offset in offsets:
                shell.ask(f"write -q {offset} 4k")
        return median_of(lambda number: daemon.snapshot(f"s{number}"))


# On a disk ----------------------------------------------------------------------------------------------------------


def beside_a_sync(options: argparse.Namespace) -> Table:
    """A snapshot of a volume with much that is not durable yet: how long it takes, and who waits for it."""
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=options.disk))
    dirty_bytes = DIRTY_BYTES // (8 if options.quick else 1)
    try:
        with (
            Serve(directory / "s", {"disk": str(2 * DIRTY_BYTES)}) as serve,
            shm_client.Context(state_dir=serve.state_dir) as context,
            context.open("disk", os.O_RDWR, owner="both") as volume,
        ):
            fill(context, volume)
            volume.flush()
            clean = median_of(lambda number: context.create_snapshot("disk", f"clean-{number}"))
            fill(context, volume, dirty_bytes)
            flush = milliseconds(volume.flush)
            fill(context, volume, dirty_bytes)
            with Writer(serve, 2 * DIRTY_BYTES - 4096) as writer:
                dirty = milliseconds(lambda: context.create_snapshot("disk", "dirty"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    took_ms = writer.took_ms
    size, took_ms = size_name(dirty_bytes), writer.took_ms
    rows = [
        ["a snapshot with nothing to sync", shown(clean)],
        [f"a snapshot with {size} that are not durable", shown(dirty)],
        [f"a flush of {size}", shown(flush)],
        [f"the median of {len(took_ms)} writes of 4 KiB during that snapshot", shown(statistics.median(took_ms))],
        ["the longest of them", shown(max(took_ms))],
    ]
    return [f"on a disk ({options.disk})", "took"], rows


class Writer:
    """Writes 4 KiB blocks at the end of a volume, one at a time, while the ``with`` lasts."""

    def __init__(self, serve: Serve, offset: int) -> None:
        self._serve = serve
        self._offset = offset
        self.took_ms: list[float] = []
        self._is_over = threading.Event()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with (
            shm_client.Context(state_dir=self._serve.state_dir, segment_bytes=MIB) as context,
            context.open("disk", os.O_RDWR, owner="both") as volume,
        ):
            buffer = context.allocate(4096)
            while not self._is_over.is_set():
                self.took_ms.append(milliseconds(lambda: volume.write(buffer, 4096, self._offset)))
                self._is_ready.set()

    def __enter__(self) -> Writer:
        self._thread.start()
        self._is_ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


# Memory -------------------------------------------------------------------------------------------------------------


def memory(directory: Path, options: argparse.Namespace) -> Table:
    """What the server has of its own, before and behind writing into a volume of 1 TiB that has a snapshot."""
    written_bytes, stride_bytes = WRITTEN_BYTES, STRIDE_BYTES
    if options.quick:
        written_bytes, stride_bytes = written_bytes // 16, stride_bytes * 16
    with (
        Serve(directory / "m", {"large": str(TIB)}) as serve,
        shm_client.Context(state_dir=serve.state_dir, segment_bytes=64 * MIB) as context,
        context.open("large") as volume,
    ):
        server = serve.server_pid()
        context.create_snapshot("large", "empty")
        before = own_bytes(server)
        Load(context, volume, Shape("write", MIB, 8)).run_once(in_order(written_bytes, MIB))
        dense = own_bytes(server) - before
        Load(context, volume, Shape("write", 4 * KIB, 8)).run_once(range(0, TIB, stride_bytes))
        sparse = own_bytes(server) - before
    shutil.rmtree(directory / "m")
    rows: list[tuple[str, int]] = [
        ("before", before),
        (f"more, behind writing {size_name(written_bytes)} of it", dense),
        (
            "that for a whole TiB, extrapolated, if map_cache_size (64 MiB) were no bound",
            dense * (TIB // written_bytes),
        ),
        (f"more, behind one page in each {size_name(stride_bytes)} of it", sparse),
    ]
    return ["the server's own memory, 1 TiB volume", "MiB"], [[name, f"{size / MIB:.1f}"] for name, size in rows]


def own_bytes(pid: int) -> int:
    """Memory that no other process shares: without segments and page cache."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * KIB
