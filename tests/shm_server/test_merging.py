"""Merging layers: nothing is lost where it fails, the last space is others', and I/O goes on beside it.

What becomes of their checksums: checksums/test_merged_checksums.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_server.stores import layer
from shm_server.stores.base import LayerFile
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.layer import Layer
from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.stores.merging import RESERVE_BYTES
from shm_server.volumes.volume import Volume
from tests.shm_server.pool import Pool

SIZE = 1 << 20


def snapshot(pool: Pool, name: str) -> None:
    pool.run(pool.snapshots.create("demo", name))


def test_a_merge_that_fails_leaves_everything(pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start takes it up."""
    pool.write(volume, 0, b"a" * PAGE)
    snapshot(pool, "s")
    pool.write(volume, 0, b"b" * PAGE)
    snapshot(pool, "t")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("shm_server.stores.merging._copy", full)
        pool.run(pool.snapshots.remove("demo", "s"))
        pool.settle()
    assert pool.read(volume, 0, PAGE) == b"b" * PAGE
    assert len(pool.manager.layers["demo"]) == 2
    pool.snapshots.tidy()
    pool.settle()
    assert len(pool.manager.layers["demo"]) == 1
    assert pool.read(volume, 0, PAGE) == b"b" * PAGE


def test_a_merge_leaves_the_last_space_to_others(pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops before the disk is full, nothing is different then, and it is taken up again when there is room."""
    pool.write(volume, 0, b"a" * PAGE)
    snapshot(pool, "s")
    pool.write(volume, PAGE, b"b" * PAGE)
    snapshot(pool, "t")
    later: list[Callable[[], None]] = []
    monkeypatch.setattr(pool.runtime, "after", lambda _s, act: later.append(act))
    with monkeypatch.context() as patch:
        free = RESERVE_BYTES // PAGE  # one page more would do
        status = os.statvfs_result((PAGE, PAGE, 1 << 30, free, free, *[0] * 5))
        patch.setattr(os, "fstatvfs", lambda _fd: status)
        pool.run(pool.snapshots.remove("demo", "s"))
        pool.settle()
        assert len(pool.manager.layers["demo"]) == 2
        assert pool.read(volume, 0, 2 * PAGE) == b"a" * PAGE + b"b" * PAGE
    (again,) = later
    again()
    pool.settle()
    assert len(pool.manager.layers["demo"]) == 1
    assert pool.read(volume, 0, 2 * PAGE) == b"a" * PAGE + b"b" * PAGE


def test_a_merge_ends_beside_a_new_top(pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop hears of the one while a worker does the other: what is written goes to the new layer alone."""
    for letter in "ab":
        pool.write(volume, 0, letter.encode() * PAGE)
        snapshot(pool, letter)
    pool.write(volume, 0, b"c" * PAGE)
    store = volume.store
    assert isinstance(store, LayeredStore)
    _, upper, top = pool.manager.lineage.chain(volume.uuid)
    new = pool.snapshots._create_layer(volume.uuid, SIZE)
    pool.manager.lineage.push(volume.uuid, new, "")
    due = [lambda: pool.stores.push(store, [top, new])]
    look = LayeredStore._look_at_top

    class Between(LayeredStore):
        """The push comes between the looks at the top's number and at its file."""

        def _look_at_top(self) -> None:
            number = self.stack.top_number
            if due:
                due.pop()()
            look(self)
            self._top_number = number

    monkeypatch.setattr(store, "__class__", Between)
    store.replace(upper.number)
    if due:
        due.pop()()
    pool.write(volume, 0, b"d" * PAGE)
    assert (pool.directory / "volumes" / top.name).read_bytes()[:PAGE] == b"c" * PAGE
    assert pool.read(volume, 0, PAGE) == b"d" * PAGE


@pytest.mark.parametrize("what", ["extent", "read", "discard"])
def test_a_layer_that_goes_while_it_is_opened(
    pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A worker finds it merged, and its file removed, when it comes to open that: what it had is in the one below."""
    pool.write(volume, 0, b"a" * PAGE)
    for letter in "bc":
        snapshot(pool, letter)
        pool.write(volume, 0, letter.encode() * PAGE)
    store = volume.store
    assert isinstance(store, LayeredStore)
    snapshot(pool, "d")
    pool.write(volume, PAGE, b"d" * PAGE)
    upper = store.stack[store._owners.look(0, 1)[0]]
    assert isinstance(upper, Layer)
    upper.throw_away()
    opened = layer.open_data

    def gone(file: LayerFile, directory: Path, *, is_writable: bool) -> DescriptorStore:
        if file.number == upper.file.number:
            store.replace(file.number)
            raise OSError(errno.EIO, "its file is missing")
        return opened(file, directory, is_writable=is_writable)

    monkeypatch.setattr(layer, "open_data", gone)
    if what == "extent":
        assert store.extent(0, PAGE) == (True, PAGE)
    elif what == "read":
        found = bytearray(PAGE)
        store.read([memoryview(found)], 0)
        assert found == b"b" * PAGE
    else:
        store.punch(0, PAGE)
        assert pool.read(volume, 0, PAGE) == bytes(PAGE)
