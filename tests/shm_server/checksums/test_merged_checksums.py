"""The checksums of layers that are merged: they go along, no bad page becomes a good one, and none is called lost."""

from __future__ import annotations

import errno
import os
from array import array

import pytest

from shm_server.stores import merging
from shm_server.stores.base import Findings
from shm_server.stores.checksums import SumsFile
from shm_server.stores.file import FileStores
from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import DATA, Run
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.volumes.volume import Volume
from tests.shm_server.checksummed import PAGES, SIZE, bad, base, content, corrupt, read, snapshot
from tests.shm_server.pool import Pool


def never() -> bool:
    return False


def test_a_merge_takes_checksums_along_and_blesses_nothing(pool: Pool, volume: Volume) -> None:
    """A bad page of the upper is bad in the lower; what was written over a bad page of the lower is good; the rest has
    the checksums that it had."""
    pool.write(volume, 0, content(0, 1) + content(1, 1))
    pool.run(volume.discard(2 * PAGE, PAGE, never))
    snapshot(pool, "young")
    layers = pool.manager.layers["demo"].values()
    upper = next(layer.name for layer in layers if layer.is_sealed)
    corrupt(pool.directory / "volumes" / upper, PAGE)
    for page in (0, 2, 3):
        corrupt(base(pool), page * PAGE)
    pool.run(pool.snapshots.remove("demo", "old"))
    pool.settle()
    assert upper not in os.listdir(pool.directory / "volumes")
    assert read(pool, volume, 0, PAGE) == content(0, 1)
    assert read(pool, volume, 2 * PAGE, PAGE) == bytes(PAGE)
    for page in (1, 3):
        with bad(page):
            read(pool, volume, page * PAGE, PAGE)
    assert [each.page for each in pool.check("demo").told] == [1, 3]
    corrupt(base(pool), PAGE)
    corrupt(base(pool), 3 * PAGE)
    assert pool.check("demo").problems == 0
    assert pool.check("demo").pages == PAGES - 1


def test_a_merge_that_fails_leaves_checksums_to_be_made(
    pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it took away is made anew by the background, not only when somebody starts the server or a check."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    pool.write(volume, 0, content(1) * 40)
    snapshot(pool, "new")
    monkeypatch.setattr(merging, "_check_room", full)
    pool.run(pool.snapshots.remove("demo", "old"))
    pool.settle()
    checks = pool.stores.layer_checks
    assert checks is not None
    sealed = pool.manager.lineage.sealed()
    assert len(sealed) == 2
    assert all(checks.is_complete(file) for file in sealed)


def test_who_reads_the_upper_behind_a_merge_blesses_nothing_in_the_lower(
    pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that was about to read a layer when it was merged, or came a moment later: what it has verified is no
    page of the layer below."""
    pool.write(volume, 0, content(1))
    snapshot(pool, "new")
    store = volume.store
    assert isinstance(store, LayeredStore)
    upper = store.stack.all_layers()[1]
    verified, buffer = upper.checking.verified, memoryview(bytearray(PAGE))
    late = upper.reader
    monkeypatch.setattr(pool.stores, "remove_layers", lambda layers: None)  # the file stays for who comes late
    pool.run(pool.snapshots.remove("demo", "old"))
    while upper in store.stack.all_layers():
        pool.turn()
    late.read((buffer,), 0)
    upper.reader.read((buffer,), 0)
    assert buffer == content(1)
    assert not verified.has(0, 0)
    pool.settle()


@pytest.mark.parametrize("is_under_way", [False, True])
def test_a_merge_that_ends_while_a_check_looks_has_lost_nothing(
    pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch, is_under_way: bool
) -> None:
    """It takes checksums away, and has put others there: whoever saw none in between tells of no loss."""
    assert isinstance(pool.stores, FileStores)
    sums = pool.stores._checks.sums(pool.manager.lineage.sealed()[0])
    entries, asked = SumsFile.entries, [0]
    if is_under_way:
        sums.begin_merge()

    def merged_meanwhile(self: SumsFile, first: int, count: int) -> array[int]:
        asked[0] += 1
        if asked[0] != 2:
            return entries(self, first, count)
        if not is_under_way:
            sums.begin_merge()
        sums.is_being_merged = False
        return array("I", bytes(4 * count))

    monkeypatch.setattr(SumsFile, "entries", merged_meanwhile)
    found = Findings()
    assert pool.stores.layer_checks is not None
    for _ in pool.stores.layer_checks.scrub(pool.manager.lineage.sealed()[0], found):
        pass
    assert asked[0] > 2
    assert found.is_clean


def test_reading_goes_on_through_a_merge(pool: Pool, volume: Volume) -> None:
    """What the upper had is read from the lower, verified, from the commit on."""
    pool.write(volume, 100 * PAGE, b"".join(content(page, 1) for page in range(100, 400)))
    snapshot(pool, "young")
    expected = b"".join(content(page, int(100 <= page < 400)) for page in range(PAGES))
    assert read(pool, volume, 0, SIZE) == expected
    pool.run(pool.snapshots.remove("demo", "old"))
    while pool.snapshots._is_tidying or pool.scrubber.is_working:
        pool.turn()
        assert read(pool, volume, 90 * PAGE, 20 * PAGE) == expected[90 * PAGE : 110 * PAGE]
    assert read(pool, volume, 0, SIZE) == expected
    assert pool.check("demo").problems == 0


def test_a_lower_layer_without_checksums_has_lost_none(pool: Pool, volume: Volume) -> None:
    """The upper's go along; that there are none for the lower's other pages is no damage, neither then nor later."""
    pool.write(volume, 0, content(0, 1))
    snapshot(pool, "young")
    lower, upper = sorted(pool.manager.lineage.sealed(), key=lambda file: not file.is_base)
    assert isinstance(pool.stores, FileStores)
    sums = pool.stores._checks.sums(lower)
    for steps in (merging.take_sums_away(sums, [Run(DATA, 1, PAGES - 1)]), pool.stores.merge(upper, lower)):
        for _ in steps:
            pass
    assert sums.covered == 0
    assert [bool(each) for each in sums.entries(0, 2)] == [True, False]
    assert pool.check("demo").problems == 0
