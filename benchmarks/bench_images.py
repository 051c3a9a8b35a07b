"""Volumes as image files, beside cp and qemu-img on the same tmpfs; what a difference costs, by size of cluster.

Export and import of one volume of random data, as raw and as qcow2: `iscsi-ovs volume export|import`, whole commands,
with the start of a Python in them. A first round is not counted: it touches the memory that the others work in. Then
some pages are written, and the difference is exported with clusters of 4 KiB, as it is done, and of 64 KiB, as QEMU's
own images have.

    python -m benchmarks.bench_images [--size MIB] [--rounds N] [--markdown]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from benchmarks.load import fill
from benchmarks.report import KIB, MIB
from iscsi_ovs import shm_client
from iscsi_ovs.images import exporting, qcow2
from tests.interop.serving import Serve, iscsi_ovs
from tests.tools import require_tool

TMPFS = Path("/dev/shm")
PAGES = 2000  # that are written at random for a difference


def run(*command: str | Path) -> None:
    subprocess.run([str(each) for each in command], check=True, stdin=subprocess.DEVNULL, timeout=600)


def whole(serve: Serve, directory: Path, size_bytes: int, rounds: int) -> list[list[str]]:
    """A row for each way; every round does all of them, so that they see the same machine."""
    qemu_img = require_tool("qemu-img", "qemu-utils")
    raw, image, other = directory / "a.raw", directory / "a.qcow2", directory / "other"

    def ours(command: str, *arguments: str | Path) -> Callable[[], None]:
        return lambda: run(*iscsi_ovs("volume", command, "--state-dir", str(serve.state_dir)), *arguments)

    def convert(image_format: str) -> Callable[[], None]:
        return lambda: run(qemu_img, "convert", "-f", "raw", "-O", image_format, raw, other)

    ways: dict[str, Callable[[], None]] = {
        "export, raw": ours("export", "--yes", "bench", raw),
        "export, qcow2": ours("export", "--yes", "bench", image),
        "import, raw": ours("import", raw, "back"),
        "import, qcow2": ours("import", image, "back"),
        "cp of the raw image": lambda: run("cp", raw, other),
        "qemu-img convert, raw to raw": convert("raw"),
        "qemu-img convert, raw to qcow2": convert("qcow2"),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, act in ways.items():
            if way.startswith("export"):  # or the old file's end would be in it
                (raw if way.endswith("raw") else image).unlink(missing_ok=True)
            begun = time.perf_counter()
            act()
            if number:
                rates[way].append(size_bytes / (time.perf_counter() - begun))
            if way.startswith("import"):
                run(*iscsi_ovs("volume", "remove", "--state-dir", str(serve.state_dir)), "back")
            other.unlink(missing_ok=True)
    return [[way, *(f"{value / 1e6:.0f} MB/s" for value in report.spread(rates[way]))] for way in ways]


def differences(serve: Serve, directory: Path, rounds: int) -> list[list[str]]:
    """PAGES random pages, and as many in one row: size of the file, and time of its export."""
    rows = []
    with shm_client.Context(state_dir=serve.state_dir) as context:
        context.create_snapshot("bench", "s0")
        everywhere = range(context.stat_volume("bench").size_bytes // (4 * KIB))
        pasts = (
            ("pages at random", random.Random(1).sample(everywhere, min(PAGES, len(everywhere)))),
            ("pages in a row", everywhere[:PAGES]),
        )
        for number, (kind, pages) in enumerate(pasts, 1):
            with context.open("bench") as volume:
                buffer = context.allocate(4 * KIB)
                buffer.data[:] = os.urandom(4 * KIB)
                for page in pages:
                    volume.write(buffer, 4 * KIB, page * 4 * KIB)
                context.deallocate(buffer)
            context.create_snapshot("bench", f"s{number}")
            for cluster_bytes in (4 * KIB, 64 * KIB):
                exporting.DIFFERENCE_CLUSTER_BYTES = cluster_bytes
                path = directory / "difference.qcow2"
                took = []
                for _ in range(rounds):
                    begun = time.perf_counter()
                    with (
                        context.open(f"bench@s{number}", os.O_RDONLY) as new,
                        context.open(f"bench@s{number - 1}", os.O_RDONLY) as old,
                    ):
                        backing = qcow2.Backing("base.raw", "raw")
                        exporting.export_difference(context, new, old, path, backing, lambda _: None, may_replace=True)
                    took.append(time.perf_counter() - begun)
                size = f"{path.stat().st_size / MIB:.1f} MiB"
                name = f"{PAGES} {kind}, clusters of {cluster_bytes // KIB} KiB"
                rows.append([name, size, f"{statistics.median(took) * 1000:.0f} ms"])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the volume")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args()
    size_bytes = min(options.size * MIB, report.free_bytes(str(TMPFS)) // 6)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=TMPFS))
    print(report.machine())
    try:
        with Serve(directory / "s", {"bench": str(size_bytes)}) as serve:
            with shm_client.Context(state_dir=serve.state_dir) as context, context.open("bench") as volume:
                fill(context, volume)
            tables = [
                (["way", "lowest", "median", "highest"], whole(serve, directory, size_bytes, options.rounds)),
                (["difference", "file", "median"], differences(serve, directory, options.rounds)),
            ]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for head, rows in tables:
        print("\n" + report.table(head, rows, markdown=options.markdown))
    print(f"\n{options.rounds} rounds on a volume of {size_bytes // MIB} MiB in {TMPFS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
