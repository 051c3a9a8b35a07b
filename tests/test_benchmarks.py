"""The benchmark of the target's own code still fits the target: it runs, and every command comes back."""

from __future__ import annotations

import sys

import pytest

from benchmarks import bench_core


def test_bench_core_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny round prints a row for reads and one for writes."""
    monkeypatch.setattr(sys, "argv", ["bench_core", "--rounds", "1", "--batch", "4", "--seconds", "0.02"])
    assert bench_core.main() == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split("×")[0].strip() for row in rows] == ["4 KiB read", "4 KiB write"]
