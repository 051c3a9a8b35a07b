"""What the benchmarks print: medians, the machine they ran on, tables for a terminal and for docs/BENCHMARKS.md."""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lowest, median, highest."""
    return min(values), statistics.median(values), max(values)


def rate(bytes_per_s: float, block_bytes: int) -> str:
    """Requests a second for small blocks, MB/s (10⁶ bytes) for larger ones."""
    if block_bytes <= 4 * KIB:
        return f"{bytes_per_s / block_bytes / 1000:.1f} k/s"
    return f"{bytes_per_s / 1e6:.0f} MB/s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Columns of equal width; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[0] = cells[0].ljust(widths[0])
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded)

    if markdown:
        rule = [("-" if not at else "-:").rjust(width, "-") for at, width in enumerate(widths)]
    else:
        rule = ["-" * width for width in widths]
    return "\n".join([line(head), line(rule), *map(line, rows)])


_started = time.monotonic()


def say(what: str) -> None:
    """What begins now, to whoever waits: on stderr, and how many seconds it is since the start."""
    print(f"{time.monotonic() - _started:4.0f} s: {what}", file=sys.stderr, flush=True)


def end_at_sigterm() -> None:
    """As at Ctrl-C: whatever was started is ended, whatever was made is removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def machine() -> str:
    """One line about where and on what this ran."""
    model = "unknown processor"
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{cores} × {model}, Linux {platform.release()}, Python {platform.python_version()}, commit {commit()}"


def commit() -> str:
    """The commit of this tree, with a + when files differ from it."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def free_bytes(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
