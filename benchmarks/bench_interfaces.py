"""One volume, six ways to it: what the way through shared memory is worth beside FUSE, with method.

    (a) our FUSE mount                      (b) QEMU's FUSE export, in C, of the same bytes
    (c) the shared-memory client            (f) iSCSI
    (d) vhost-user-blk from a guest kernel  (e) QEMU's vhost-user-blk, in C, from the same kind of guest

Random places, 4, 64 and 256 KiB, one request at a time and 32. The clients: fio (libaio, no page cache) on files, fio
(io_uring) in User Mode Linux, `qemu-img bench` over iSCSI, and a Python process on the library, which is all there is
to (c). Ways take turns point by point, the two guests with each other, and the medians of the rounds are printed, with
the processor time of server and client for each request. A guest costs more than what is measured with it: its own RAM
disk says how much. Last the ratio to what the blog post claims: 1.3 to 1.4 times FUSE's I/O at about half the CPU.

    make bench-interfaces                     about three minutes; needs root for the guests
    make bench-interfaces ARGS='--quick'      a first look
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import fio, qemu, report
from benchmarks.guest_disk import DISK, RAM_DISK, RAM_DISK_KIB, GuestDisk
from benchmarks.load import Load, Moved, Shape, at_random, fill
from benchmarks.report import KIB, MIB
from iscsi_ovs import shm_client
from tests.guest.uml import GuestNetwork
from tests.interop import processes
from tests.interop.serving import Serve, iscsi_ovs

TMPFS = Path("/dev/shm")
ROOT = Path(__file__).parent.parent
VOLUME = "bench"
ENGINE = "libaio"  # on FUSE, where io_uring hands each read to a thread

SHAPES = tuple(
    Shape(kind, size, depth)
    for size in (4 * KIB, 64 * KIB, 256 * KIB)
    for depth in (1, 32)
    for kind in ("read", "write")
)
FUSE, QEMU_FUSE, LIBRARY, ISCSI = "(a) our FUSE", "(b) QEMU FUSE", "(c) library", "(f) iSCSI"
VHOST, QEMU_VHOST, GUEST_ONLY = "(d) our vhost-user", "(e) QEMU vhost-user", "guest's RAM disk"
HOST_WAYS, GUEST_WAYS = (FUSE, QEMU_FUSE, LIBRARY, ISCSI), (VHOST, QEMU_VHOST, GUEST_ONLY)


@dataclass(frozen=True, slots=True)
class Measure:
    per_s: float  # requests
    server_s: float  # CPU of each request
    client_s: float


@dataclass(slots=True)
class Way:
    """How one shape is run, and whose CPU is whose. ``start_s`` of the client's is no I/O."""

    title: str
    run: Callable[[Shape], Moved]
    servers: Sequence[int]
    client_cpu: Callable[[], float]
    start_s: float = 0.0

    def measure(self, shape: Shape) -> Measure:
        server, client = processes.cpu_seconds(self.servers), self.client_cpu()
        moved = self.run(shape)
        server, client = processes.cpu_seconds(self.servers) - server, self.client_cpu() - client
        return Measure(
            moved.requests / moved.seconds, server / moved.requests, max(client - self.start_s, 0) / moved.requests
        )


@dataclass(slots=True)
class Results:
    measures: dict[tuple[str, Shape], list[Measure]] = field(default_factory=dict)

    def add(self, way: Way, shape: Shape) -> None:
        self.measures.setdefault((way.title, shape), []).append(way.measure(shape))

    def has(self, title: str) -> bool:
        return any(title == key[0] for key in self.measures)

    def median(self, title: str, shape: Shape) -> Measure:
        every = self.measures[title, shape]
        return Measure(
            statistics.median(each.per_s for each in every),
            statistics.median(each.server_s for each in every),
            statistics.median(each.client_s for each in every),
        )

    def ratio(self, shape: Shape, title: str, other: str) -> tuple[float, float]:
        """Of requests a second, and of CPU seconds a request, server and client together."""
        ours, theirs = self.median(title, shape), self.median(other, shape)
        cpu = (ours.server_s + ours.client_s) / max(theirs.server_s + theirs.client_s, 1e-9)
        return ours.per_s / theirs.per_s, cpu


def children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cost_of(act: Callable[[], object], cpu: Callable[[], float], times: int = 3) -> float:
    """CPU seconds of what is done around the I/O."""
    before = cpu()
    for _ in range(times):
        act()
    return (cpu() - before) / times


# Ways from the host -------------------------------------------------------------------------------------------------


@contextmanager
def fuse_mount(serve: Serve, directory: Path) -> Iterator[tuple[Path, int]]:
    """The volume's file, and the process that serves it."""
    directory.mkdir()
    command = iscsi_ovs("mount", str(directory), "--foreground", "--state-dir", str(serve.state_dir))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        processes.wait_until(lambda: os.path.ismount(directory), 20, f"{directory} is mounted")
        yield directory / f"{VOLUME}.raw", process.pid
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(directory)], check=False, capture_output=True)
        if not processes.wait_gone(process.pid, 5):
            processes.kill_all([process.pid])
        process.wait(10)


def through_library(
    context: shm_client.Context, orders: Mapping[int, list[int]], shape: Shape, seconds: float
) -> Moved:
    with context.open(VOLUME, os.O_RDWR if shape.kind == "write" else os.O_RDONLY) as volume:
        load = Load(context, volume, shape)
        moved = load.run(orders[shape.block_bytes], seconds)
        load.close()
    return moved


@contextmanager
def host_ways(serve: Serve, directory: Path, options: argparse.Namespace) -> Iterator[list[Way]]:
    image = image_of(serve)
    with ExitStack() as stack:
        server = serve.server_pid()
        mounted, mounter = stack.enter_context(fuse_mount(serve, directory / "mount"))
        exported = directory / "exported.raw"
        exported.touch()
        daemon = qemu.QemuDaemon(directory / "fuse", image, "raw", {"type": "fuse", "mountpoint": str(exported)})
        stack.enter_context(daemon)
        context = stack.enter_context(shm_client.Context(state_dir=serve.state_dir))
        orders = {size: at_random(options.size, size) for size in {shape.block_bytes for shape in SHAPES}}

        def file(path: Path) -> Callable[[Shape], Moved]:
            return lambda shape: fio.run(shape, path, options.size, options.seconds, ENGINE)

        def iscsi(shape: Shape) -> Moved:
            count = int(
                options.seconds * (20_000 if shape.depth == 1 else 60_000 if shape.block_bytes == 4 * KIB else 12_000)
            )
            return qemu.bench(serve.url(VOLUME), shape, max(shape.depth, count), is_random=True)

        fio_s = cost_of(lambda: fio.run(SHAPES[0], exported, options.size, 0.001, ENGINE), children_cpu)
        qemu_s = cost_of(lambda: qemu.bench(serve.url(VOLUME), SHAPES[0], 1, is_random=False), children_cpu)
        yield [
            Way(FUSE, file(mounted), [mounter, server], children_cpu, fio_s),
            Way(QEMU_FUSE, file(exported), [daemon.pid], children_cpu, fio_s),
            Way(
                LIBRARY,
                lambda shape: through_library(context, orders, shape, options.seconds),
                [server],
                time.process_time,
            ),
            Way(ISCSI, iscsi, serve.processes(), children_cpu, qemu_s),
        ]


def image_of(serve: Serve) -> Path:
    """The volume's file: a volume without snapshots is one."""
    return serve.state_dir / "pool" / "volumes" / f"{VOLUME}.raw"


# Ways from a guest --------------------------------------------------------------------------------------------------


@contextmanager
def guest_ways(serve: Serve, directory: Path, options: argparse.Namespace) -> Iterator[list[Way]]:
    ours, theirs = directory / "ours.sock", directory / "theirs.sock"
    with ExitStack() as stack:
        exported = serve.volume("export", VOLUME, "--vhost-user", str(ours))
        assert exported.returncode == 0, exported.stderr
        stack.callback(serve.volume, "unexport", VOLUME)
        properties = {"type": "vhost-user-blk", "addr.type": "unix", "addr.path": str(theirs)}
        daemon = stack.enter_context(qemu.QemuDaemon(directory / "vhost", image_of(serve), "raw", properties))
        guests = []
        for name, socket in (("ours", ours), ("theirs", theirs)):
            network = stack.enter_context(GuestNetwork())
            guest = GuestDisk(network, directory / name, [f"virtio_uml.device={socket}:2"])
            guests.append(stack.enter_context(guest))
        first, second = guests
        start_s = cost_of(second.start_fio, second.cpu_seconds)

        def disk(guest: GuestDisk, path: str, size_bytes: int) -> Callable[[Shape], Moved]:
            return lambda shape: guest.run(shape, path, size_bytes, options.seconds)

        ram_bytes = RAM_DISK_KIB * KIB
        yield [
            Way(VHOST, disk(first, DISK, options.size), [serve.server_pid()], first.cpu_seconds, start_s),
            Way(QEMU_VHOST, disk(second, DISK, options.size), [daemon.pid], second.cpu_seconds, start_s),
            Way(GUEST_ONLY, disk(second, RAM_DISK, ram_bytes), [], second.cpu_seconds, start_s),
        ]


# The tables ---------------------------------------------------------------------------------------------------------


def print_tables(results: Results, options: argparse.Namespace) -> list[str]:
    """Returns what misses its goal."""
    for ways in (HOST_WAYS, GUEST_WAYS):
        titles = [title for title in ways if results.has(title)]
        if titles:
            show("rate", titles, lambda shape, title: rate(results, shape, title), options)
            show("CPU µs a request, server + client", titles, lambda shape, title: cpu(results, shape, title), options)
    missed: list[str] = []
    if results.has(LIBRARY):
        titles = ["I/O", "goal", "CPU", "goal ", "I/O to the post's 1.3–1.4", "CPU to its half"]
        rows = [[shape.name, *compare(results, shape, missed)] for shape in SHAPES]
        print(report.table(["(c) to (b)", *titles], rows, markdown=options.markdown), "\n")
    if results.has(VHOST):
        rows = [[shape.name, *compare_guests(results, shape, missed)] for shape in SHAPES]
        print(report.table(["(d) to (e)", "I/O", "goal"], rows, markdown=options.markdown), "\n")
    return missed


def show(what: str, titles: Sequence[str], cell: Callable[[Shape, str], str], options: argparse.Namespace) -> None:
    rows = [[shape.name, *(cell(shape, title) for title in titles)] for shape in SHAPES]
    print(report.table([what, *titles], rows, markdown=options.markdown), "\n")


def rate(results: Results, shape: Shape, title: str) -> str:
    per_s = results.median(title, shape).per_s
    return f"{per_s / 1000:.1f} k/s" + (
        f", {per_s * shape.block_bytes / 1e6:.0f} MB/s" if shape.block_bytes > 4 * KIB else ""
    )


def cpu(results: Results, shape: Shape, title: str) -> str:
    measure = results.median(title, shape)
    return f"{measure.server_s * 1e6:.1f} + {measure.client_s * 1e6:.1f}"


def compare(results: Results, shape: Shape, missed: list[str]) -> list[str]:
    io, processor = results.ratio(shape, LIBRARY, QEMU_FUSE)
    goal = 3.0 if shape.block_bytes == 4 * KIB else 2.0
    if io < goal:
        missed.append(f"(c) to (b), {shape.name}: {io:.2f} of {goal:g} times its I/O")
    if processor > 0.5:
        missed.append(f"(c) to (b), {shape.name}: {processor:.2f} of its CPU, not 0.5")
    claim = f"{io / 1.4:.1f}–{io / 1.3:.1f} ×"
    return [f"{io:.2f}", f"≥ {goal:g}", f"{processor:.2f}", "≤ 0.5", claim, f"{processor / 0.5:.2f} ×"]


def compare_guests(results: Results, shape: Shape, missed: list[str]) -> list[str]:
    io, _ = results.ratio(shape, VHOST, QEMU_VHOST)
    goal = 0.7 if shape.block_bytes == 4 * KIB else 1.0
    if io < goal:
        missed.append(f"(d) to (e), {shape.name}: {io:.2f} of {goal:g} times its I/O")
    return [f"{io:.2f}", f"≥ {goal:g}"]


# The whole ----------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--size", type=int, default=512, help="MiB of the volume")
    parser.add_argument("--only", choices=("host", "guest"), help="ways from there")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--enforce", action="store_true", help="exit code 1 when a goal is missed")
    options = parser.parse_args()
    options.size *= MIB
    if options.quick:
        options.rounds, options.seconds = 1, min(options.seconds, 0.25)
    return options


def measure(ways: Sequence[Way], results: Results, options: argparse.Namespace) -> None:
    for number in range(options.rounds):
        started = time.monotonic()
        for shape in SHAPES:
            for way in ways:
                if not number or way.title != GUEST_ONLY:
                    results.add(way, shape)
        print(f"round {number + 1} of {options.rounds}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def main() -> int:
    options = parse_arguments()
    report.end_at_sigterm()
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=TMPFS))
    guests = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))  # /dev is a guest's own
    results = Results()
    print(report.machine(), "\n")
    try:
        with Serve(directory / "s", {VOLUME: str(options.size)}) as serve:
            with shm_client.Context(state_dir=serve.state_dir) as context, context.open(VOLUME) as volume:
                fill(context, volume)
            if options.only != "guest":
                with host_ways(serve, directory, options) as ways:
                    measure(ways, results, options)
            if options.only != "host":
                with guest_ways(serve, guests, options) as ways:
                    measure(ways, results, options)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(guests, ignore_errors=True)
    missed = print_tables(results, options)
    print(f"medians of {options.rounds} rounds of {options.seconds:g} s on {options.size // MIB} MiB in {TMPFS}")
    for each in missed:
        print(f"below its goal: {each}")
    return int(bool(missed) and options.enforce)


if __name__ == "__main__":
    sys.exit(main())
