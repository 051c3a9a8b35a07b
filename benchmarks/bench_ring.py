"""The storage path without iSCSI: a shared-memory client against the volume server, through rings and slots only.

What the rings cost, and so what the target has left to win or lose above them. The volume is a file in tmpfs, written
with random data first; the client keeps `depth` requests outstanding, takes every completion that is there, and shows
what it submits meanwhile as one batch, as the target does.

    python -m benchmarks.bench_ring [--quick] [--markdown]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.load import Load, Shape, at_random, fill
from benchmarks.report import GIB, KIB, MIB
from iscsi_ovs import shm_client
from tests.interop import processes
from tests.interop.serving import Serve

TMPFS = Path("/dev/shm")

POINTS = tuple(
    Shape(kind, block_bytes, depth)
    for block_bytes, depth in ((4 * KIB, 1), (4 * KIB, 32), (64 * KIB, 8), (256 * KIB, 8), (MIB, 4))
    for kind in ("read", "write")
)


def measure(serve: Serve, rounds: int, seconds: float) -> list[list[str]]:
    """A row for each point: requests or bytes a second, CPU seconds of the server and of this process per GiB."""
    rates: dict[Shape, list[float]] = {point: [] for point in POINTS}
    costs: dict[Shape, list[tuple[float, float]]] = {point: [] for point in POINTS}
    with shm_client.Context(state_dir=serve.state_dir) as context, context.open("bench", os.O_RDWR) as volume:
        fill(context, volume)
        server = [serve.server_pid()]
        offsets = {size: at_random(volume.size, size) for size in {point.block_bytes for point in POINTS}}
        for _ in range(rounds):
            for point in POINTS:
                load = Load(context, volume, point)
                before = processes.cpu_seconds(server), time.process_time()
                moved = load.run(offsets[point.block_bytes], seconds)
                gib = moved.requests * point.block_bytes / GIB
                rates[point].append(moved.requests * point.block_bytes / moved.seconds)
                after = processes.cpu_seconds(server), time.process_time()
                load.close()
                costs[point].append(((after[0] - before[0]) / gib, (after[1] - before[1]) / gib))
    return [row(point, rates[point], costs[point]) for point in POINTS]


def row(point: Shape, rates: Sequence[float], costs: Sequence[tuple[float, float]]) -> list[str]:
    low, middle, high = report.spread(rates)
    server, client = (statistics.median(cost[side] for cost in costs) for side in (0, 1))
    around = f"{report.rate(low, point.block_bytes)} to {report.rate(high, point.block_bytes)}"
    return [point.name, report.rate(middle, point.block_bytes), around, f"{server:.2f}", f"{client:.2f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, a quarter of a second each")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the volume")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    rounds, seconds = (1, 0.25) if options.quick else (options.rounds, 1.0)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=TMPFS))
    size_bytes = min(options.size * MIB, report.free_bytes(str(TMPFS)) // 2)
    print(report.machine())
    try:
        with Serve(directory / "s", {"bench": str(size_bytes)}) as serve:
            rows = measure(serve, rounds, seconds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    head = ["point", "median", "spread", "server CPU s/GiB", "client CPU s/GiB"]
    print(report.table(head, rows, markdown=options.markdown))
    print(f"\n{rounds} rounds on a volume of {size_bytes // MIB} MiB in {TMPFS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
