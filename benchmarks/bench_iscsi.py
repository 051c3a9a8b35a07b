"""This target beside Debian's tgtd, in one run: the same clients, the same tmpfs, the same bytes, turn by turn.

Each round starts both anew and runs every point on both, one right after the other; the order of the two alternates.
The result of a point is the median over the rounds; timings drift between runs, so only ratios inside one are worth
anything. Before a round every block of both disks holds random data; after it a sample of both is read back and
compared. `serve` runs with its defaults: portal, state directory and volume are all that is given.

    make bench                       five rounds, about two and a half minutes
    make bench ARGS='--quick'        one short round
    python -m benchmarks.bench_iscsi --rounds 9 --markdown --json results.json --only read
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks import report
from benchmarks.report import GIB, KIB, MIB
from tests.interop import initiators, processes
from tests.interop.serving import Serve
from tests.interop.tgtd import Tgtd, free_port

TMPFS = Path("/dev/shm")
LABELS = ("iscsi-ovs", "tgtd")
SAMPLE_BYTES = 4 * KIB  # divides every block size, so that none lies half in what a writer wrote
SAMPLES = 8


class Target(Protocol):
    """What both contestants are to the benchmark."""

    command: list[str]

    def url(self, name: str) -> str: ...

    def processes(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Point:
    """One load: which client, what it does, how large and how deep, and how much of it makes about a second."""

    client: str
    kind: str
    block_bytes: int
    depth: int
    count: int

    @property
    def name(self) -> str:
        size = f"{self.block_bytes // MIB} MiB" if self.block_bytes >= MIB else f"{self.block_bytes // KIB} KiB"
        how = "random read" if self.client == "iscsi-perf" else self.kind
        return f"{size} {how} × {self.depth} ({self.client})"


POINTS = (
    Point("iscsi-perf", "read", 4 * KIB, 32, 0),
    Point("qemu-img", "read", 4 * KIB, 32, 40_000),
    Point("qemu-img", "write", 4 * KIB, 32, 40_000),
    Point("qemu-img", "read", 64 * KIB, 8, 16_000),
    Point("qemu-img", "write", 64 * KIB, 8, 12_000),
    Point("qemu-img", "read", 256 * KIB, 8, 6_000),
    Point("qemu-img", "write", 256 * KIB, 8, 4_000),
    Point("qemu-img", "read", 1 * MIB, 4, 1_500),
    Point("qemu-img", "write", 1 * MIB, 4, 1_000),
    Point("qemu-img", "read", 4 * KIB, 1, 8_000),
    Point("qemu-img", "write", 4 * KIB, 1, 8_000),
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One run of a point: bytes a second, and CPU seconds of the target's side for each GiB moved."""

    bytes_per_s: float
    cpu_s_per_gib: float


@dataclass(slots=True)
class Disk:
    """One contestant's disk, and what every byte of it should be."""

    label: str
    target: Target
    url: str
    written: list[tuple[int, int]] = field(default_factory=list)  # (bytes from the start, pattern), the oldest first

    def run(self, point: Point, pattern: int, scale: float) -> Measure:
        pids = self.target.processes()
        before = processes.cpu_seconds(pids)
        moved, seconds = self._load(point, pattern, scale)
        cpu_s = processes.cpu_seconds(pids) - before
        return Measure(moved / seconds, cpu_s / (moved / GIB))

    def _load(self, point: Point, pattern: int, scale: float) -> tuple[float, float]:
        """Bytes moved and the seconds it took, as the client says."""
        argv = command(point, self.url, pattern, scale)
        said = initiators.run(*argv, timeout_s=120)
        if point.client == "iscsi-perf":
            seconds = perf_seconds(scale)
            average = re.search(r"iops average (\d+) ", said)
            if average is None:
                raise initiators.InitiatorError(f"iscsi-perf said nothing of an average: {said[-300:]}")
            return int(average[1]) * seconds * point.block_bytes, seconds
        completed = re.search(r"Run completed in ([\d.]+) seconds", said)
        if completed is None:
            raise initiators.InitiatorError(f"qemu-img bench said nothing of its time: {said[-300:]}")
        if point.kind == "write":
            self.written.append((count_of(point, scale) * point.block_bytes, pattern))
        return count_of(point, scale) * point.block_bytes, float(completed[1])


def count_of(point: Point, scale: float) -> int:
    return max(point.depth, int(point.count * scale))


def perf_seconds(scale: float) -> int:
    return max(1, round(2 * scale))


def command(point: Point, url: str, pattern: int, scale: float) -> list[str]:
    """The client's command line."""
    if point.client == "iscsi-perf":
        blocks = str(point.block_bytes // 512)
        return ["iscsi-perf", "-m", str(point.depth), "-b", blocks, "-t", str(perf_seconds(scale)), "-r", url]
    write = ["-w", f"--pattern={pattern}"] if point.kind == "write" else []
    size, count = str(point.block_bytes), str(count_of(point, scale))
    what = ["-d", str(point.depth), "-s", size, "-c", count]
    return ["qemu-img", "bench", *write, *what, "-t", "none", "-f", "raw", url]


def random_block(number: int) -> bytes:
    """The bytes that MiB `number` of both disks holds before the first round."""
    return random.Random(f"disk {number}").randbytes(MIB)


def expected(disk: Disk, offset: int, size_bytes: int) -> bytes:
    """What a sample should read: random data, or the last pattern over it. Writers start at 0 and wrap at the end."""
    for length, pattern in reversed(disk.written):
        if offset + SAMPLE_BYTES <= min(length, size_bytes):
            return bytes([pattern]) * SAMPLE_BYTES
    start = offset % MIB
    return random_block(offset // MIB)[start : start + SAMPLE_BYTES]


def compare_samples(disk: Disk, size_bytes: int, seed: int) -> None:
    """Reads a few blocks back and compares them; a difference ends the benchmark."""
    rng = random.Random(seed)
    edge = max((length for length, _ in disk.written), default=0) // SAMPLE_BYTES
    last = size_bytes // SAMPLE_BYTES
    numbers = [rng.randrange(last) for _ in range(SAMPLES)]
    numbers += [number for number in (0, last - 1, min(edge + 1, last - 1)) if number not in numbers]
    dump = initiators.qemu_io(disk.url, *[f"read -v {number * SAMPLE_BYTES} {SAMPLE_BYTES}" for number in numbers])
    lines = re.findall(r"^[0-9a-f]{8,}:  ((?:[0-9a-f]{2} ){16})", dump, re.MULTILINE)
    found = bytes.fromhex("".join(lines))
    for place, number in enumerate(numbers):
        sample = found[place * SAMPLE_BYTES : (place + 1) * SAMPLE_BYTES]
        if sample != expected(disk, number * SAMPLE_BYTES, size_bytes):
            raise AssertionError(f"{disk.label}: block {number} of {SAMPLE_BYTES} bytes is not what was written there")


def measure(points: Sequence[Point], options: argparse.Namespace) -> Results:
    """All rounds: per point and contestant the list of its measures.

    Each round has processes and files of its own: where these lie in memory is luck that lasts as long as they do, and
    can halve what a contestant reaches at a point.
    """
    results: Results = {point.name: {label: [] for label in LABELS} for point in points}
    for round_number in range(options.rounds):
        started = time.monotonic()
        with contestants(options, is_first=not round_number, points=points) as disks:
            for place, point in enumerate(points):
                order = disks if (round_number + place) % 2 == 0 else list(reversed(disks))
                for disk in order:
                    pattern = 1 + (round_number * len(points) + place) % 255
                    results[point.name][disk.label].append(disk.run(point, pattern, options.scale))
            for disk in disks:
                compare_samples(disk, options.size, seed=round_number)
        took = time.monotonic() - started
        print(f"round {round_number + 1} of {options.rounds}: {took:.0f} s, samples compared", file=sys.stderr)
    return results


@contextmanager
def contestants(options: argparse.Namespace, *, is_first: bool, points: Sequence[Point]) -> Iterator[list[Disk]]:
    """Both, freshly started, on files full of the same random bytes."""
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=TMPFS))
    try:
        path = prepare(directory, options.size)
        ours = Serve(directory / "s", {"bench": str(options.size)})
        theirs = Tgtd(f"127.0.0.1:{free_port()}", {"bench": path})
        with ours, theirs:
            disks = [Disk(label, each, each.url("bench")) for label, each in zip(LABELS, (ours, theirs), strict=True)]
            initiators.upload(path, disks[0].url, timeout_s=120)
            if is_first:
                describe(disks, points, options)
            yield disks
    finally:
        shutil.rmtree(directory, ignore_errors=True)


Results = dict[str, dict[str, list[Measure]]]


def ratio(ours: Sequence[Measure], theirs: Sequence[Measure]) -> float:
    return statistics.median(m.bytes_per_s for m in ours) / statistics.median(m.bytes_per_s for m in theirs)


def rows_of(results: Results, points: Sequence[Point], labels: Sequence[str]) -> list[list[str]]:
    rows = []
    for point in points:
        ours, theirs = (results[point.name][label] for label in labels)
        rates = [statistics.median(m.bytes_per_s for m in measures) for measures in (ours, theirs)]
        cpu = [statistics.median(m.cpu_s_per_gib for m in measures) for measures in (ours, theirs)]
        rows.append(
            [
                point.name,
                *(report.rate(each, point.block_bytes) for each in rates),
                f"{ratio(ours, theirs):.2f}",
                *(f"{each:.2f}" for each in cpu),
            ]
        )
    return rows


def prepare(directory: Path, size_bytes: int) -> Path:
    """tgtd's file, every block of it random; our disk is filled from it through iSCSI."""
    path = directory / "tgtd.raw"
    with path.open("wb") as file:
        for number in range(size_bytes // MIB):
            file.write(random_block(number))
    return path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, a quarter of the work, 256 MiB")
    parser.add_argument("--size", type=int, default=0, help="MiB of each disk (default 1024, less on a small tmpfs)")
    parser.add_argument("--only", default="", help="only points whose name contains this")
    parser.add_argument("--json", type=Path, help="write every single measure to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--mark", type=float, default=1.3, help="the ratio that points of depth ≥ 4 should reach")
    parser.add_argument("--enforce", action="store_true", help="exit code 1 when a point misses the mark")
    options = parser.parse_args()
    options.scale = 0.25 if options.quick else 1.0
    if options.quick:
        options.rounds = 1
    room = report.free_bytes(str(TMPFS)) // 3 // MIB * MIB
    options.size = options.size * MIB if options.size else (256 * MIB if options.quick else GIB)
    if options.size > room:
        print(f"{TMPFS} has room for two disks of {room // MIB} MiB only", file=sys.stderr)
        options.size = room
    return options


def main() -> int:
    options = parse_arguments()
    points = [point for point in POINTS if options.only in point.name]
    return conclude(measure(points, options), points, options)


def describe(disks: Sequence[Disk], points: Sequence[Point], options: argparse.Namespace) -> None:
    """The machine and every command line, before anything is measured."""
    print(report.machine())
    for disk in disks:
        print(f"{disk.label}: {shlex.join(disk.target.command)}")
    for point in points:
        print(f"    {shlex.join(command(point, 'URL', 1, options.scale))}")
    print()


def conclude(results: Results, points: Sequence[Point], options: argparse.Namespace) -> int:
    """The table, and which points miss the mark."""
    labels = LABELS
    head = ["point", *labels, "ratio", "CPU s/GiB", "tgtd CPU s/GiB"]
    print(report.table(head, rows_of(results, points, labels), markdown=options.markdown))
    print(f"\nmedians of {options.rounds} rounds on disks of {options.size // MIB} MiB in {TMPFS}")
    if options.json:
        content = {
            "machine": report.machine(),
            "rounds": options.rounds,
            "results": {
                name: {label: [[m.bytes_per_s, m.cpu_s_per_gib] for m in measures] for label, measures in each.items()}
                for name, each in results.items()
            },
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    missed = [
        point.name
        for point in points
        if point.depth >= 4 and ratio(*(results[point.name][label] for label in labels)) < options.mark
    ]
    if missed:
        print(f"below the mark of {options.mark:g}: {', '.join(missed)}")
        return int(options.enforce)
    print(f"every point of depth 4 and more reaches the mark of {options.mark:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
