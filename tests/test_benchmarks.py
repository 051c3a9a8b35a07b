"""The benchmarks still fit what they measure: they run, and print their rows."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import bench_core, bench_images, bench_interfaces, bench_snapshots, fio, pasts
from benchmarks.load import Moved, Shape
from tests.tools import require_fuse, require_tool


def test_bench_core_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny round prints a row for reads and one for writes."""
    monkeypatch.setattr(sys, "argv", ["bench_core", "--rounds", "1", "--batch", "4", "--seconds", "0.02"])
    assert bench_core.main() == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split("×")[0].strip() for row in rows] == ["4 KiB read", "4 KiB write"]


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark takes SIGTERM for itself; the tests keep theirs."""
    monkeypatch.setattr("benchmarks.report.end_at_sigterm", lambda: None)


@pytest.mark.parametrize("part", ["shm", "qcow2"])
def test_bench_snapshots_runs(part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Tiny volumes get their snapshots, and a row is printed for each point."""
    require_tool("qemu-storage-daemon", "qemu-system-common")
    tiny = ["--size", "1", "--rounds", "1", "--seconds", "0.01", "--snapshots", "3"]
    monkeypatch.setattr(sys, "argv", ["bench_snapshots", "--only", part, *tiny])
    monkeypatch.setattr(bench_snapshots, "REQUESTS", {4 << 10: 50, 1 << 20: 4})
    assert bench_snapshots.main() == 0
    said = capsys.readouterr().out
    assert all(any(line.startswith(point.name) for line in said.splitlines()) for point in bench_snapshots.POINTS)


def test_bench_images_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny volume goes out and in, and its differences are exported."""
    require_tool("qemu-img", "qemu-utils")
    monkeypatch.setattr(sys, "argv", ["bench_images", "--size", "2", "--rounds", "1"])
    monkeypatch.setattr(bench_images, "PAGES", 10)
    assert bench_images.main() == 0
    said = capsys.readouterr().out
    assert all(way in said for way in ("export, raw", "import, qcow2", "10 pages at random, clusters of 4 KiB"))


def test_a_scattered_past_is_scattered() -> None:
    """Each page is written once, and hardly ever before the same snapshot as its neighbour."""
    plan = pasts.pages_between(pasts.SCATTERED, 1000, 300)
    when = {page: number for number, pages in enumerate(plan) for page in pages}
    assert len(plan) == 300
    assert sorted(when) == list(range(1000))
    assert sum(when[page] == when[page + 1] for page in range(999)) < 20


def test_bench_interfaces_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One shape by every way from the host (guests take seconds to boot, and have tests of their own)."""
    require_fuse()
    for program, package in (("fio", "fio"), ("qemu-img", "qemu-utils"), ("qemu-storage-daemon", "qemu-system-common")):
        require_tool(program, package)
    monkeypatch.setattr(bench_interfaces, "SHAPES", bench_interfaces.SHAPES[:1])
    tiny = ["--rounds", "1", "--seconds", "0.02", "--size", "4"]
    monkeypatch.setattr(sys, "argv", ["bench_interfaces", "--only", "host", *tiny])
    assert bench_interfaces.main() == 0
    said = capsys.readouterr().out
    assert all(title in said for title in (*bench_interfaces.HOST_WAYS, "(c) to (b)"))


def test_what_fio_says() -> None:
    """Warnings stand before the JSON; nothing moved is an error."""
    shape = Shape("read", 4096, 1)
    job = {"error": 0, "read": {"total_ios": 50, "runtime": 250}}
    assert fio.parse("note: x\n" + json.dumps({"jobs": [job]}), shape) == Moved(50, 0.25)
    for wrong in (
        "killed",
        json.dumps({"jobs": [job | {"error": 5}]}),
        json.dumps({"jobs": [{"error": 0, "read": {"total_ios": 0}}]}),
    ):
        with pytest.raises(fio.FioError):
            fio.parse(wrong, shape)
