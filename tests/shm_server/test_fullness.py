"""Fullness: the soft threshold is passed once, and not passed again before it was left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from shm_server.abi.control import PoolInfo
from shm_server.fullness import LOOK_S, Fullness
from shm_server.runtime import Runtime


class Space(NamedTuple):
    """As statvfs(2) tells; a tenth of it is root's."""

    f_bfree: int
    f_bavail: int
    f_blocks: int = 1100
    f_frsize: int = 4096


def space(used: int) -> Space:
    return Space(1100 - used, 1000 - used)


def test_it_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the threshold, of what df(1) calls the size; and at the next time only when it was 2 percent below."""
    now = 0.0
    found = space(0)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    told: list[PoolInfo] = []
    runtime = Runtime(lambda: now)
    fullness = Fullness(runtime, Path("pool"), 80, told.append)
    expected = []
    for used, change in ((799, None), (800, True), (900, None), (781, None), (779, False), (799, None), (800, True)):
        found = space(used)
        now += LOOK_S
        runtime.fire_timers()
        if change is not None:
            expected.append(PoolInfo(1000 * 4096, (1000 - used) * 4096, 80, change))
        assert told == expected
        assert fullness.info().available_bytes == (1000 - used) * 4096
    runtime.close()


def test_without_a_threshold_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 percent, or a pool in memory, which has no size."""
    monkeypatch.setattr(os, "statvfs", lambda _: space(1000))
    runtime = Runtime()
    assert Fullness(runtime, Path("pool"), 0, pytest.fail).info() == PoolInfo(1000 * 4096, 0, 0, False)
    assert Fullness(runtime, None, 80, pytest.fail).info() == PoolInfo(0, 0, 80, False)
    assert runtime.timeout_s() is None
    runtime.close()
