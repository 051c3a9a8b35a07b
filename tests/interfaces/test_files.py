"""When a flush has nothing to do."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from iscsi_ovs.interfaces.files import File, Files
from iscsi_ovs.interfaces.lanes import Lane


class FakeLanes:
    """Notes what is performed; a flush may be held up."""

    def __init__(self) -> None:
        self.written: Any = None
        self.performed: list[str] = []
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.failure: OSError | None = None

    def perform(self, action: Any, *arguments: Any) -> int:
        self.performed.append(action.__name__)
        if action is Lane.flush:
            self.begun.set()
            assert self.may_end.wait(10)
            if self.failure is not None:
                raise self.failure
        return 0

    @property
    def flushes(self) -> int:
        return self.performed.count("flush")


@pytest.fixture
def lanes() -> FakeLanes:
    return FakeLanes()


@pytest.fixture
def files(lanes: FakeLanes) -> Files:
    return Files(lanes)  # type: ignore[arg-type]


def test_a_flush_of_nothing_is_none(lanes: FakeLanes, files: Files) -> None:
    """Without a write since the last one there is none to do; each write and discard wants another."""
    file = File("a", is_volume=True)
    lanes.may_end.set()
    files.flush(file)
    assert lanes.flushes == 0
    files.write(file, None, 1, 0, False)
    files.flush(file)
    files.flush(file)
    assert lanes.flushes == 1


def test_a_flush_beside_a_flush_is_not_skipped(lanes: FakeLanes, files: Files) -> None:
    """A second fsync does not return while the first one is still at work on the same writes."""
    file = File("a", is_volume=True)
    files.write(file, None, 1, 0, False)
    threads = [threading.Thread(target=files.flush, args=(file,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert lanes.begun.wait(10)
    threads[0].join(0.05)
    assert all(thread.is_alive() for thread in threads)
    lanes.may_end.set()
    for thread in threads:
        thread.join(10)
    assert lanes.flushes == 2


def test_a_write_that_ends_during_a_flush_wants_another(lanes: FakeLanes, files: Files) -> None:
    """What completed behind the beginning of a flush is not covered by it."""
    file = File("a", is_volume=True)
    files.write(file, None, 1, 0, False)
    thread = threading.Thread(target=files.flush, args=(file,))
    thread.start()
    assert lanes.begun.wait(10)
    files.write(file, None, 1, 0, False)
    lanes.may_end.set()
    thread.join(10)
    files.flush(file)
    assert lanes.flushes == 2


def test_a_flush_that_failed_is_tried_again(lanes: FakeLanes, files: Files) -> None:
    """fsync after a failed fsync asks the server, which knows whether it is for good."""
    file = File("a", is_volume=True)
    lanes.may_end.set()
    files.write(file, None, 1, 0, False)
    lanes.failure = OSError(5, "lost")
    for _ in range(2):
        with pytest.raises(OSError):
            files.flush(file)
    assert lanes.flushes == 2
