"""fio as the client of what looks like a file or a disk: one shape, for a time, random places, no page cache."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.load import Moved, Shape
from tests.interop.serving import environment
from tests.tools import require_tool


class FioError(AssertionError):
    """fio ended with an error, or said something else than expected."""


def command(shape: Shape, path: str | Path, size_bytes: int, seconds: float, engine: str) -> list[str]:
    return [
        require_tool("fio", "fio"),
        "--output-format=json",
        "--name=bench",
        f"--filename={path}",
        f"--size={size_bytes}",
        f"--ioengine={engine}",
        f"--rw=rand{shape.kind}",
        f"--bs={shape.block_bytes}",
        f"--iodepth={shape.depth}",
        "--direct=1",
        *("--time_based", f"--runtime={round(seconds * 1000)}ms"),
        *("--norandommap", "--randrepeat=0", "--fallocate=none", "--allow_file_create=0"),
    ]


def run(shape: Shape, path: Path, size_bytes: int, seconds: float, engine: str) -> Moved:
    argv = command(shape, path, size_bytes, seconds, engine)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    if done.returncode:
        raise FioError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return parse(done.stdout, shape)


def parse(said: str, shape: Shape) -> Moved:
    """What its JSON says; warnings may stand before it."""
    start = said.find("{")
    if start < 0:
        raise FioError(f"no JSON of fio's: {said[-300:]}")
    job: dict[str, Any] = json.loads(said[start:])["jobs"][0]
    side = job[shape.kind]
    if job["error"] or not side["total_ios"]:
        raise FioError(f"fio moved nothing: error {job['error']}")
    return Moved(side["total_ios"], side["runtime"] / 1000)
