"""Who owns which page, as a chain keeps it: room in its file, and what becomes of it where that can't be written."""

from __future__ import annotations

import errno
from array import array
from pathlib import Path

import pytest

from shm_server.stores.clock import Clock
from shm_server.stores.owners import BASE, CHUNK_PAGES, Owners
from shm_server.stores.table import Table

BLOCK_PAGES = 1024  # owners of 4 bytes in a block of 4096


@pytest.fixture
def owners(tmp_path: Path) -> Owners:
    """One chunk of them is kept in memory."""
    made = Owners(Table(tmp_path), Clock(1))
    made.renew()
    return made


def claim(owners: Owners, first: int, count: int, owner: int) -> None:
    with owners.lock:
        owners.set(owners.make_room(first, count), owner)


def test_what_was_thrown_away_is_had_again(owners: Owners) -> None:
    """Across the border of two chunks, of which one is in memory."""
    claim(owners, CHUNK_PAGES - 2, 4, 5)
    claim(owners, CHUNK_PAGES, 1, 6)
    for _ in range(2):
        assert list(owners.look(CHUNK_PAGES - 3, 6)) == [BASE, 5, 5, 6, 5, BASE]
        assert len(owners.chunks) == 1
        owners.look(0, 1)


def test_each_block_gets_its_room_once(owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a record says that a page is owned, its place in the file is written, so a full disk refuses it there."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(Table, "write", lambda _table, _owners, number, offset: made.append((number, offset)))
    with owners.lock:
        for first, count in ((0, 1), (BLOCK_PAGES - 1, 2), (0, 3 * BLOCK_PAGES), (CHUNK_PAGES - 1, 2)):
            owners.make_room(first, count)
    assert made == [(0, 0), (0, 4096), (0, 8192), (0, 4 * (CHUNK_PAGES - BLOCK_PAGES)), (1, 0)]


def test_what_could_not_be_written_stays_in_memory(owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record is in the log already: so the chunk that says so is never thrown away, whatever else is looked at."""

    def fail(_table: Table, _owners: array[int], _number: int, _offset: int) -> None:
        raise OSError(errno.EIO, "the medium")

    claim(owners, 0, 2, 5)
    with monkeypatch.context() as patch:
        patch.setattr(Table, "write", fail)
        with owners.lock:
            owners.set(owners.make_room(1, 1), 6)
    for number in range(1, 4):
        claim(owners, number * CHUNK_PAGES, 1, 7)
    assert list(owners.look(0, 3)) == [5, 6, BASE]


def test_what_has_its_room_can_not_fail(owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record is in the log already: so nothing is read any more, whatever was thrown away to make that room."""

    def fail(_table: Table, _number: int) -> bytes:
        raise OSError(errno.EIO, "the medium")

    claim(owners, CHUNK_PAGES - 2, 4, 5)
    with owners.lock:
        room = owners.make_room(CHUNK_PAGES - 2, 4)
        with monkeypatch.context() as patch:
            patch.setattr(Table, "read", fail)
            owners.set(room, 6)
    assert list(owners.look(CHUNK_PAGES - 3, 6)) == [BASE, 6, 6, 6, 6, BASE]
