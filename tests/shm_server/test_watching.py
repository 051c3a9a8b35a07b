"""inotify: every write by somebody else is told, at the next look behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_server.stores import linux
from shm_server.stores.watching import Watch


@pytest.fixture
def told() -> list[int | None]:
    return []


@pytest.fixture
def watch(told: list[int | None]) -> Iterator[Watch]:
    made = Watch(told.append)
    yield made
    made.close()


def test_writes_cuts_and_holes_are_told(watch: Watch, told: list[int | None], tmp_path: Path) -> None:
    """Once for many, and not for reading; each file by its number."""
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(bytes(8192))
    numbers = [watch.add(path) for path in paths]
    watch.look()
    assert told == []
    paths[0].read_bytes()
    watch.look()
    assert told == []
    fd = os.open(paths[1], os.O_RDWR)
    for act in (
        lambda: [os.pwrite(fd, b"x", at) for at in range(0, 300, 2)],
        lambda: linux.fallocate(fd, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, 0, 4096),
        lambda: os.ftruncate(fd, 4096),
    ):
        act()
        watch.look()
        assert told == [numbers[1]]
        told.clear()
    watch.remove(numbers[1])
    os.pwrite(fd, b"x", 0)
    os.close(fd)
    watch.look()
    assert told == []


def test_more_events_than_are_kept_are_told_as_such(watch: Watch, told: list[int | None], tmp_path: Path) -> None:
    """None: it may have been any of the files."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    fds = []
    for number in range(2):  # neighbours in the queue that are alike are one event
        path = tmp_path / str(number)
        path.touch()
        watch.add(path)
        fds.append(os.open(path, os.O_RDWR))
    for at in range(limit // 2 + 10):
        for fd in fds:
            os.pwrite(fd, b"x", at)
    watch.look()
    assert None in told
    told.clear()
    watch.look()
    assert told == [], "one look sees all that there was"
    for fd in fds:
        os.close(fd)
