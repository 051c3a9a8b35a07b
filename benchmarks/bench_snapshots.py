"""Volumes with 0, 100 and 10,000 snapshots: what they cost whoever reads and writes, beside QEMU's qcow2, in one run.

Two maps (pasts.py): *old*, all data are older than the snapshots; *scattered*, every page was last written between a
different pair of snapshots. Random 4 KiB and sequential 1 MiB, 32 outstanding: through the shared-memory client, volume
by volume in turn, another one first in each round, each as a ratio to the volume without snapshots; and by `qemu-img
bench` over iSCSI, beside qcow2 with internal snapshots behind qemu-storage-daemon's NBD export on a Unix socket. A
write is measured twice: the first after a snapshot, when its page gets a place in the new layer, and once the page has
one. Then how long a snapshot, a clone and opening take, by size and by how many snapshots there are, and what memory
the server needs.

    make bench-snapshots                     about four minutes; stderr says how far it is
    make bench-snapshots ARGS='--quick'      a first look: one round, less of everything
    python -m benchmarks.bench_snapshots --only shm --markdown
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks import pasts, qemu, report
from benchmarks.load import Load, Moved, Shape, at_random, fill, in_order
from benchmarks.qcow2 import Qcow2
from benchmarks.report import KIB, MIB
from benchmarks.snapshot_costs import costs, milliseconds, shown
from iscsi_ovs import shm_client
from tests.interop.serving import Serve

TMPFS = Path("/dev/shm")
DEPTH = 32
PARTS = ("shm", "qcow2", "costs")
WARM_S = 0.05

T = TypeVar("T")

RANDOM_READ, READ = Shape("read", 4 * KIB, DEPTH), Shape("read", MIB, DEPTH)
RANDOM_WRITE, WRITE = Shape("write", 4 * KIB, DEPTH), Shape("write", MIB, DEPTH)
IS_RANDOM = {RANDOM_READ: True, READ: False, RANDOM_WRITE: True, WRITE: False}
FIRST, AGAIN = "first after a snapshot", "again"


@dataclass(frozen=True, slots=True)
class Past:
    """A volume's map and how many snapshots it has."""

    kind: str
    snapshots: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.snapshots}"

    @property
    def title(self) -> str:
        return f"{self.kind}, {self.snapshots:,}" if self.snapshots else "none"


NONE = Past("none", 0)


@dataclass(frozen=True, slots=True)
class Point:
    """A row: what is done, and of writes, whether its pages have a place already."""

    shape: Shape
    phase: str = ""

    @property
    def name(self) -> str:
        size = "4 KiB random" if IS_RANDOM[self.shape] else "1 MiB"
        return f"{size} {self.shape.kind} × {self.shape.depth}{', ' if self.phase else ''}{self.phase}"

    def goal(self, past: Past) -> float | None:
        """The ratio to no snapshots that is wanted."""
        if past.kind == pasts.OLD and self.phase != FIRST:
            return 0.95
        if past.kind == pasts.SCATTERED and self.phase != FIRST:
            return 0.7 if IS_RANDOM[self.shape] else 0.5 if self.shape is READ else None
        return None


READS = (Point(RANDOM_READ), Point(READ))
WRITES = tuple(Point(shape, phase) for shape in (RANDOM_WRITE, WRITE) for phase in (FIRST, AGAIN))
POINTS = (*READS, *WRITES)
REQUESTS = {4 * KIB: 30_000, MIB: 512}  # of qemu-img bench, by block size


@dataclass(slots=True)
class Results:
    """Bytes a second: of each point and column, one for each round."""

    rates: dict[tuple[Point, str], list[float]] = field(default_factory=dict)

    def add(self, point: Point, column: str, moved: Moved) -> None:
        rate = moved.requests * point.shape.block_bytes / moved.seconds
        self.rates.setdefault((point, column), []).append(rate)

    def median(self, point: Point, column: str) -> float:
        return statistics.median(self.rates[point, column])

    def ratio(self, point: Point, column: str, to: str) -> float:
        """The median of the rounds' ratios: what was measured one behind the other."""
        pairs = zip(self.rates[point, column], self.rates[point, to], strict=True)
        return statistics.median(rate / other for rate, other in pairs)

    def rate(self, point: Point, column: str) -> str:
        return report.rate(self.median(point, column), point.shape.block_bytes)


# The volumes --------------------------------------------------------------------------------------------------------


@contextmanager
def prepared(directory: Path, every: Sequence[Past], options: argparse.Namespace) -> Iterator[Serve]:
    """A server with these volumes, full of random bytes, each with its past; nothing is left of it."""
    serve = Serve(directory, {past.name: str(options.size) for past in every}, ready_timeout_s=60)
    report.say(f"filling {len(every)} volumes")
    try:
        with serve, shm_client.Context(state_dir=serve.state_dir) as context:
            pool = Path(context.pool)
            for past in every:
                with context.open(past.name) as volume:
                    fill(context, volume)
            context.close()
            serve.stop()
        for past in every:
            if past.snapshots:
                report.say(f"making the past of {past.name}")
                pasts.add_past(pool, past.name, past.kind, past.snapshots)
        with serve:
            yield serve
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# Through the shared-memory client -----------------------------------------------------------------------------------


def through_shared_memory(serve: Serve, every: Sequence[Past], options: argparse.Namespace) -> Results:
    """All volumes are open at once, and take turns."""
    results = Results()
    with ExitStack() as stack:
        context = stack.enter_context(shm_client.Context(state_dir=serve.state_dir, segment_bytes=128 * MIB))
        volumes = [(past, stack.enter_context(context.open(past.name, os.O_RDWR))) for past in every]
        settled = settle(context, volumes)
        print(report.table(["volume", "check", "first read of all", "again"], settled, markdown=options.markdown))
        print("the check made the checksums, too; what is read first is held against them\n", flush=True)
        for number in range(options.rounds):
            report.say(f"shared-memory client: reads, round {number + 1} of {options.rounds}")
            for point in READS:
                order = order_of(point.shape, options.size)
                for past, volume in rotated(volumes, number):
                    with warm(context, volume, point.shape, order) as load:
                        results.add(point, past.title, load.run(order, options.seconds))
        for number in range(options.rounds):
            report.say(f"shared-memory client: writes, round {number + 1} of {options.rounds}")
            for shape in (RANDOM_WRITE, WRITE):
                order = order_of(shape, options.size)[: options.pages]
                for past, volume in rotated(volumes, number):
                    with warm(context, volume, shape, order) as load:
                        if past.snapshots:
                            context.create_snapshot(past.name, f"shm-{number}-{shape.block_bytes}")
                        results.add(Point(shape, FIRST), past.title, load.run_once(order))
                        results.add(Point(shape, AGAIN), past.title, load.run(order, options.seconds))
    return results


def rotated(volumes: Sequence[T], number: int) -> list[T]:
    """Another one is first in each round."""
    number %= len(volumes)
    return [*volumes[number:], *volumes[:number]]


@contextmanager
def warm(context: shm_client.Context, volume: shm_client.Volume, shape: Shape, order: Sequence[int]) -> Iterator[Load]:
    """A load whose buffers, and whose volume, were used just now. Else whoever comes first pays for memory."""
    load = Load(context, volume, shape)
    load.run(order, WARM_S)
    try:
        yield load
    finally:
        load.close()


def settle(context: shm_client.Context, volumes: Sequence[tuple[Past, shm_client.Volume]]) -> list[list[str]]:
    """What the server does behind a snapshot is done: all checksums are made, and every page was read, and held against
    its own, since its volume was opened. Else the first read of each page is measured, and who makes checksums. How
    long that took, and another read of everything."""
    rows = []
    for past, volume in volumes:
        report.say(f"checking {past.name}, and reading all of it")
        check_ms = milliseconds(context.check_volume, past.name)
        load = Load(context, volume, READ)
        offsets = in_order(volume.size, READ.block_bytes)
        first_ms, again_ms = (milliseconds(load.run_once, offsets) for _ in range(2))
        load.close()
        rows.append([past.title, *map(shown, (check_ms, first_ms, again_ms))])
    return rows


def order_of(shape: Shape, size_bytes: int) -> list[int]:
    return (at_random if IS_RANDOM[shape] else in_order)(size_bytes, shape.block_bytes)


def print_shared_memory(results: Results, every: Sequence[Past], options: argparse.Namespace) -> list[str]:
    """The table; returns what misses its goal."""
    rows, missed = [], []
    for point in POINTS:
        row = [point.name, results.rate(point, NONE.title)]
        for past in every[1:]:
            ratio = results.ratio(point, past.title, NONE.title)
            row.append(f"{ratio:.2f}")
            if (goal := point.goal(past)) is not None and ratio < goal:
                missed.append(f"{point.name}, {past.title}: {ratio:.2f} of {goal:g}")
        rows.append(row)
    head = ["shared-memory client", *(past.title for past in every)]
    print(report.table(head, rows, markdown=options.markdown))
    rounds, size = f"{options.rounds} rounds of {options.seconds:g} s", f"{options.size // MIB} MiB"
    print(f"medians of {rounds} on {size}; ratios to the volume without snapshots\n")
    return missed


# Beside qcow2 -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Contestant:
    """A disk for `qemu-img bench`, and how it gets one more snapshot."""

    title: str
    url: str
    snapshot: Callable[[str], object]


def beside_qcow2(serve: Serve, every: Sequence[Past], directory: Path, options: argparse.Namespace) -> list[str]:
    """Both by the same client; returns at which points qcow2 is faster."""
    with ExitStack() as stack:
        context = stack.enter_context(shm_client.Context(state_dir=serve.state_dir, segment_bytes=64 * MIB))

        def nothing(_: str) -> None:
            pass

        pairs, volumes = [], []
        for past in every:
            report.say(f"qcow2 makes {past.snapshots:,} snapshots, in {options.qcow2_seconds:g} s at most")
            image = Qcow2(directory / past.name, options.size)
            daemon = stack.enter_context(image.served())
            made = image.add_past(daemon, past.snapshots, options.qcow2_seconds) if past.snapshots else 0

            def snapshot(name: str, volume: str = past.name) -> None:
                context.create_snapshot(volume, name)

            has_past = bool(past.snapshots)
            ours = Contestant(f"ours, {past.title}", serve.url(past.name), snapshot if has_past else nothing)
            title = f"qcow2, {made:,}" if has_past else "qcow2, none"
            pairs.append((ours, Contestant(title, daemon.url, daemon.snapshot if has_past else nothing)))
            # qemu-img logs in anew for each measurement; a volume that nobody has open is closed, and forgets.
            volumes.append((past, stack.enter_context(context.open(past.name, os.O_RDONLY))))
        settle(context, volumes)
        print(f"iscsi-ovs: qemu-img bench {serve.url(every[0].name)}\nqcow2: qemu-img bench {daemon.url}")
        return print_beside(run_beside(pairs, options), pairs, options)


def run_beside(pairs: Sequence[tuple[Contestant, Contestant]], options: argparse.Namespace) -> Results:
    results = Results()
    everybody = [each for pair in pairs for each in pair]
    for number in range(options.rounds):
        report.say(f"qemu-img bench: reads, round {number + 1} of {options.rounds}")
        for point in READS:
            for each in rotated(everybody, 2 * number):
                count = options.requests[point.shape.block_bytes]
                moved = qemu.bench(each.url, point.shape, count, is_random=IS_RANDOM[point.shape])
                results.add(point, each.title, moved)
    for number in range(options.rounds):
        report.say(f"qemu-img bench: writes, round {number + 1} of {options.rounds}")
        for shape in (RANDOM_WRITE, WRITE):
            for each in rotated(everybody, 2 * number):
                each.snapshot(f"qemu-{number}-{shape.block_bytes}")
                count = min(options.pages, options.size // shape.block_bytes)
                moved = qemu.bench(each.url, shape, count, is_random=IS_RANDOM[shape])
                results.add(Point(shape, FIRST), each.title, moved)
                count *= 1 if IS_RANDOM[shape] else 4  # with steps, more would be other blocks
                moved = qemu.bench(each.url, shape, count, is_random=IS_RANDOM[shape])
                results.add(Point(shape, AGAIN), each.title, moved)
    return results


def print_beside(
    results: Results, pairs: Sequence[tuple[Contestant, Contestant]], options: argparse.Namespace
) -> list[str]:
    rows, slower = [], []
    for point in POINTS:
        row = [point.name]
        for ours, theirs in pairs:
            ratio = results.ratio(point, ours.title, theirs.title)
            row += [results.rate(point, ours.title), results.rate(point, theirs.title), f"{ratio:.2f}"]
            if ratio < 1:
                slower.append(f"{point.name}, {theirs.title}: {ratio:.2f}")
        rows.append(row)
    titles = [title for ours, theirs in pairs for title in (ours.title, theirs.title, "ratio")]
    print(report.table(["qemu-img bench", *titles], rows, markdown=options.markdown))
    print(f"medians of {options.rounds} rounds; qcow2 got as many snapshots as {options.qcow2_seconds:g} s allowed:")
    print("ours with all of its own is held against that\n")
    return slower


# The whole ----------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, less of everything, 1,000 snapshots at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--snapshots", type=int, nargs="*", default=[100, 10_000])
    parser.add_argument("--size", type=int, default=128, help="MiB of each volume")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part (again for another one)")
    parser.add_argument(
        "--disk", type=Path, default=Path("/var/tmp"), help="a directory on a disk, for what syncs cost"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--enforce", action="store_true", help="exit code 1 when a goal is missed")
    options = parser.parse_args()
    options.qcow2_seconds, options.pages = 10.0, 16_384
    options.requests = REQUESTS
    if options.quick:
        options.rounds = 1
        options.snapshots = [min(count, 1000) for count in options.snapshots]
        options.qcow2_seconds, options.seconds = 3.0, min(options.seconds, 0.2)
        options.requests = {size: count // 3 for size, count in REQUESTS.items()}
    options.size *= MIB
    options.only = options.only or PARTS
    return options


def main() -> int:
    options = parse_arguments()
    report.end_at_sigterm()
    every = [NONE, *(Past(kind, count) for kind in (pasts.OLD, pasts.SCATTERED) for count in options.snapshots)]
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=TMPFS))
    missed: list[str] = []
    print(report.machine(), "\n", flush=True)
    try:
        if "shm" in options.only or "costs" in options.only:
            with prepared(directory / "shm", every, options) as serve:
                if "shm" in options.only:
                    missed += print_shared_memory(through_shared_memory(serve, every, options), every, options)
                if "costs" in options.only:
                    serve.stop()  # a server that is new to the volumes opens them
                    serve.start()
                    costs(serve, [past.name for past in every], directory, options)
        if "qcow2" in options.only:
            scattered = [past for past in every if past.kind != pasts.OLD]
            with prepared(directory / "iscsi", scattered, options) as serve:
                missed += beside_qcow2(serve, scattered, directory, options)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for each in missed:
        print(f"below its goal: {each}")
    if not missed:
        print("every goal is reached")
    return int(bool(missed) and options.enforce)


if __name__ == "__main__":
    sys.exit(main())
