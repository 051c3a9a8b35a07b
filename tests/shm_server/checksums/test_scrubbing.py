"""Sealed pages and their checksums: bad ones are never read as good ones, whoever reads, and a check names them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_server.runtime import Runtime
from shm_server.scrubbing import BAD_PAGE, DAMAGED_BLOCK, DAMAGED_HEADER, LOST_CHECKSUM
from shm_server.stores import linux, summing
from shm_server.stores.checked import CheckedReader
from shm_server.stores.checksums import SECTOR_BYTES
from shm_server.stores.file import FileStores
from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.volumes import compound, copying
from shm_server.volumes.volume import Volume
from tests.shm_server.checksummed import (
    PAGES,
    SIZE,
    bad,
    base,
    content,
    corrupt,
    forget,
    read,
    snapshot,
)
from tests.shm_server.pool import Pool


def test_a_bad_page_is_found_at_its_first_reading(pool: Pool, volume: Volume, caplog: pytest.LogCaptureFixture) -> None:
    """EIO, with the page's offset; its neighbours are read as ever; a line names file, page and offset, once."""
    corrupt(base(pool), 300 * PAGE + 77)
    for offset, length in ((300 * PAGE, PAGE), (300 * PAGE + 512, 512), (0, SIZE), (299 * PAGE, 2 * PAGE)):
        with bad(300):
            read(pool, volume, offset, length)
    assert read(pool, volume, 299 * PAGE, PAGE) == content(299)
    assert read(pool, volume, 301 * PAGE + 512, 512) == content(301)[:512]
    words = f"{base(pool)}, layer 2: page 300, at byte 1228800, is not what its checksum says"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [words]


def test_a_page_that_was_read_and_goes_bad_later_is_found_as_well(pool: Pool, volume: Volume) -> None:
    """It had been verified, and even so: what was written to the file since is known. When it is mended it is good."""
    everything = b"".join(map(content, range(PAGES)))
    for _ in range(2):
        assert read(pool, volume, 0, SIZE) == everything
    corrupt(base(pool), 5 * PAGE)
    with bad(5):
        read(pool, volume, 5 * PAGE, PAGE)
    with bad(5):
        read(pool, volume, 0, SIZE)
    corrupt(base(pool), 5 * PAGE)
    assert read(pool, volume, 0, SIZE) == everything


def test_what_has_left_memory_is_verified_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that the medium lost after it was read is found when it comes from there again, even if nobody has said
    that the file was written."""
    pool = Pool(tmp_path)
    pool.run(pool.manager.create("demo", SIZE))
    with pool.volume("demo") as volume:
        pool.write(volume, 0, b"".join(map(content, range(PAGES))))
        snapshot(pool, "old")
        assert read(pool, volume, 0, SIZE) == b"".join(map(content, range(PAGES)))
        monkeypatch.setattr("shm_server.stores.watching.Watch.look", lambda self: None)
        corrupt(base(pool), 400 * PAGE)
        fd = os.open(base(pool), os.O_RDWR)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        still_there = _is_cached(fd, 500 * PAGE)
        os.close(fd)
        if still_there:
            pytest.skip("a file system that keeps everything in memory")
        with bad(400):
            read(pool, volume, 399 * PAGE, 2 * PAGE)
    pool.close()


def _is_cached(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(PAGE)], offset, os.RWF_NOWAIT) == PAGE
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_nothing_is_remembered_of_files_that_cannot_be_watched(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then every read verifies."""

    def no_more(self: object, path: Path) -> int:
        raise OSError(errno.ENOSPC, "no more watches")

    monkeypatch.setattr("shm_server.stores.watching.Watch.add", no_more)
    pool = Pool(directory)
    pool.run(pool.manager.create("demo", SIZE))
    with pool.volume("demo") as volume:
        pool.write(volume, 0, content(0) + content(1))
        snapshot(pool, "old")
        assert read(pool, volume, 0, 2 * PAGE) == content(0) + content(1)
        corrupt(base(pool), PAGE)
        with bad(1):
            read(pool, volume, 0, 2 * PAGE)
    pool.close()


def test_a_layer_that_is_verified_as_a_whole_is_read_without_a_question(pool: Pool, volume: Volume) -> None:
    """Where its checksums were made while somebody had it open, or a check has read it all: until somebody writes."""
    assert pool.check("demo").problems == 0
    assert isinstance(volume.store, LayeredStore)

    def reader() -> CheckedReader:
        assert isinstance(volume.store, LayeredStore)
        found = volume.store.stack.base.reader
        assert isinstance(found, CheckedReader)
        return found

    def is_plain() -> bool:
        return reader().is_plain

    assert is_plain()
    forget(pool)
    assert not is_plain()
    assert pool.check("demo").problems == 0
    assert is_plain()
    corrupt(base(pool), 8 * PAGE)
    with bad(8):
        read(pool, volume, 0, SIZE)
    assert not is_plain()
    assert pool.check("demo").problems == 1
    assert not is_plain()
    corrupt(base(pool), 8 * PAGE)
    assert pool.check("demo").problems == 0
    assert is_plain()
    pool.write(volume, 0, content(0, 1))
    pool.run(pool.snapshots.create("demo", "young"))
    layer = volume.store.stack.all_layers()[1]
    assert isinstance(layer.reader, CheckedReader)
    assert layer.reader.is_plain, "without checksums there is nothing to verify"
    pool.settle()
    assert layer.reader.is_plain
    corrupt(pool.directory / "volumes" / layer.file.name, 0)
    with bad(0):
        read(pool, volume, 0, PAGE)


READERS: dict[str, Callable[[Pool, Volume], object]] = {
    "a write of less than the page": lambda pool, volume: pool.write(volume, 7 * PAGE + 512, b"x" * 512),
    "a write up to the middle of it": lambda pool, volume: pool.write(volume, 6 * PAGE, b"x" * (PAGE + 512)),
    "compare": lambda pool, volume: pool.run(
        compound.compare(volume, Bytes(b"x" * 3 * PAGE), 6 * PAGE, 3 * PAGE, never)
    ),
    "verify": lambda pool, volume: pool.run(compound.verify(volume, 6 * PAGE, 3 * PAGE, never)),
    "compare and write": lambda pool, volume: pool.run(
        compound.compare_and_write(volume, Bytes(b"x" * 2 * PAGE), 7 * PAGE, PAGE, is_durable=False)
    ),
    "or write": lambda pool, volume: pool.run(
        compound.or_write(volume, Bytes(b"\1" * PAGE), 7 * PAGE, PAGE, never, is_durable=False)
    ),
    "copy": lambda pool, volume: pool.run(copying.copy(volume, 0, volume, 100 * PAGE, 20 * PAGE, never)),
    "write atomic": lambda pool, volume: pool.run(
        compound.write_atomic(volume, Bytes(b"x" * 512), 7 * PAGE + 512, 512, never)
    ),
}


class Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length_bytes = len(data)

    def read(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]


def never() -> bool:
    return False


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_a_bad_page_hears_of_it(pool: Pool, volume: Volume, reader: str) -> None:
    """Also where it is only to complete what is written: a bad page never comes to be part of a good one."""
    corrupt(base(pool), 7 * PAGE + 3000)
    with pytest.RaisesExc(OSError, check=lambda error: error.errno == errno.EIO):
        READERS[reader](pool, volume)
    with bad(7):
        read(pool, volume, 7 * PAGE, PAGE)


def test_a_page_that_is_written_anew_is_good(pool: Pool, volume: Volume) -> None:
    """Whole; the snapshot's is as bad as before."""
    corrupt(base(pool), 7 * PAGE)
    pool.write(volume, 7 * PAGE, content(7, 1))
    assert read(pool, volume, 7 * PAGE, PAGE) == content(7, 1)
    with pool.volume("demo@old", "r") as old, bad(7):
        read(pool, old, 7 * PAGE, PAGE)


def test_all_who_share_a_layer_hear_of_it(pool: Pool, volume: Volume) -> None:
    """One's verified page is bad for all when another finds it bad, though the kernel has it in memory for both."""
    pool.run(pool.snapshots.clone("demo", "old", "clone"))
    with pool.volume("clone") as clone:
        for each in (volume, clone):
            assert read(pool, each, 9 * PAGE, PAGE) == content(9)
        corrupt(base(pool), 9 * PAGE)
        for each in (volume, clone):
            with bad(9):
                read(pool, each, 9 * PAGE, PAGE)


def test_check_names_what_is_bad_and_who_sees_it(pool: Pool, volume: Volume) -> None:
    """Layer, file, page; volumes and snapshots above, but not those for which a layer in between has the page."""
    pool.run(pool.snapshots.clone("demo", "old", "clone"))
    with pool.volume("clone") as clone:
        pool.write(clone, 20 * PAGE, content(20, 1))
        snapshot(pool, "its", "clone")
    pool.write(volume, 10 * PAGE, content(10, 1), is_durable=True)
    snapshot(pool, "young")
    pool.write(volume, 21 * PAGE, content(21, 1), is_durable=True)
    for page in (10, 20, 21, 22):
        corrupt(base(pool), page * PAGE + 1)
    checked = pool.check("demo")
    told = [(each.kind, each.layer.name, each.page, each.pages, each.seen_by) for each in checked.told]
    assert told == [
        (BAD_PAGE, "demo.raw", 10, 1, ("clone", "clone@its", "demo@old")),
        (BAD_PAGE, "demo.raw", 20, 1, ("demo", "demo@old", "demo@young")),
        (BAD_PAGE, "demo.raw", 21, 1, ("clone", "clone@its", "demo@old", "demo@young")),
        (BAD_PAGE, "demo.raw", 22, 1, ("clone", "clone@its", "demo", "demo@old", "demo@young")),
    ]
    assert (checked.layers, checked.pages, checked.problems) == (2, PAGES + 1, 4)
    assert pool.check("clone").problems == 4, "it stands on the same layer"
    assert read(pool, volume, 23 * PAGE, PAGE) == content(23)


def test_check_makes_what_is_missing(pool: Pool) -> None:
    """Before the background had its turn; afterwards a bad page is found."""
    with pool.volume("demo") as volume:
        pool.write(volume, 0, content(0) * 300)
        pool.run(pool.snapshots.create("demo", "old"))
        assert pool.check("demo").pages == 300
        corrupt(base(pool), 299 * PAGE)
        assert pool.check("demo").problems == 1


def test_a_check_does_not_look_at_all_layers_for_each(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more snapshots it takes longer in proportion: the chain is asked for at the beginning, and at the end."""
    for number in range(12):
        pool.run(pool.snapshots.create("demo", f"s{number}"))
    asked: list[str] = []
    chain = pool.manager.lineage.chain
    monkeypatch.setattr(pool.manager.lineage, "chain", lambda uuid: asked.append(uuid) or chain(uuid))
    assert pool.check("demo").layers == 12
    assert len(asked) == 2


def test_a_check_goes_through_no_holes(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads of a layer are the layer's own pages, however large the volume is."""
    size = 1 << 30
    pool.run(pool.manager.create("large", size))
    with pool.volume("large") as volume:
        pool.write(volume, 0, content(0))
        snapshot(pool, "base", "large")
        pool.write(volume, size - PAGE, content(1))
        pool.write(volume, size // 2, content(2) * 3)
        snapshot(pool, "layer", "large")
        asked: list[tuple[int, int]] = []
        read_pages = summing._read
        monkeypatch.setattr(summing, "_read", lambda *those: asked.append(those[1:]) or read_pages(*those))
        assert pool.check("large").pages == 5
        assert sorted(asked) == [(0, 1), (size // 2 // PAGE, 3), (size // PAGE - 1, 1)]


def test_a_page_that_became_a_hole_is_bad(pool: Pool, volume: Volume) -> None:
    """It has a checksum, and is looked for by that."""
    with base(pool).open("r+b") as file:
        linux.fallocate(file.fileno(), linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, 200 * PAGE, PAGE * 300)
    [problem] = pool.check("demo").told
    assert (problem.page, problem.pages) == (200, 300)


def test_small_layers_are_not_checked_one_by_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them would each wait for a thread, and for the loop, several times."""
    pool = Pool(directory, runtime=Runtime(clock=lambda: 0.0))
    pool.run(pool.manager.create("demo", SIZE))
    with pool.volume("demo") as volume:
        for number in range(8):
            pool.write(volume, number * PAGE, content(number))
            pool.run(pool.snapshots.create("demo", f"s{number}"))
    calls: list[object] = []
    call = pool.scrubber._call
    monkeypatch.setattr(pool.scrubber, "_call", lambda function: calls.append(function) or call(function))
    assert pool.check("demo").layers == 8
    assert len(calls) == 2, "all of them at once, and then there are no more"
    calls.clear()
    pool.scrubber._complete.clear()
    pool.scrubber.look()
    pool.settle()
    assert len(calls) <= 2
    pool.close()


def test_a_volume_without_snapshots_has_nothing_to_check(pool: Pool) -> None:
    """It is one file that is written; that is no error."""
    assert pool.check("demo").layers == 0


def test_checksums_go_on_where_they_were(directory: Path) -> None:
    """After a start of the server; and layers without data need none."""
    pool = Pool(directory)
    pool.run(pool.manager.create("demo", SIZE))
    with pool.volume("demo") as volume:
        pool.write(volume, 0, content(0) * 3)
        pool.run(pool.snapshots.create("demo", "old"))
    pool.runtime.close()
    pool.catalog.close()
    pool = Pool(directory)
    pool.settle()
    assert (directory / "volumes" / "2.sums").exists()
    with pool.volume("demo") as volume:
        corrupt(base(pool), PAGE)
        with bad(1):
            read(pool, volume, PAGE, PAGE)
        snapshot(pool, "empty")
    assert not (directory / "volumes" / "1.sums").exists()
    pool.close()


def test_a_base_that_is_damaged_stays_a_layer(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """As a plain store it would have no checksums, and the bad page would be a good one. A sound one becomes that, and
    its checksums go."""
    with pool.volume("demo") as volume:
        pool.write(volume, 0, content(0) + content(1))
        snapshot(pool, "old")
        pool.write(volume, 0, content(0, 1))
        corrupt(base(pool), PAGE)
        pool.run(pool.snapshots.remove("demo", "old"))
    pool.settle()
    pool.snapshots.tidy()
    pool.settle()
    assert len(pool.manager.layers["demo"]) > 0
    assert "volume demo keeps its layers" in caplog.text
    with pool.volume("demo") as volume:
        with bad(1):
            read(pool, volume, PAGE, PAGE)
        pool.write(volume, PAGE, content(1, 1))
    corrupt(base(pool), PAGE)
    pool.snapshots._unsound.clear()  # as after a start
    pool.snapshots.tidy()
    pool.settle()
    assert "demo" not in pool.manager.layers
    assert not list((pool.directory / "volumes").glob("*.sums"))
    with pool.volume("demo") as volume:
        assert pool.read(volume, 0, 2 * PAGE) == content(0, 1) + content(1, 1)


def test_bad_checksums_make_no_good_data_unreadable(pool: Pool, volume: Volume) -> None:
    """They are told by check, and made anew only on an operator's word."""
    sums = pool.directory / "volumes" / "2.sums"
    for at in (20, SECTOR_BYTES + 8):
        corrupt(sums, at)
    fd = os.open(sums, os.O_RDWR)
    os.pwrite(fd, bytes(SECTOR_BYTES), 3 * SECTOR_BYTES)
    os.close(fd)
    pool.close()
    pool.__init__(pool.directory)  # type: ignore[misc]
    with pool.volume("demo") as anew:
        assert read(pool, anew, 0, SIZE) == b"".join(map(content, range(PAGES)))
        kinds = {each.kind for each in pool.check("demo").told}
        assert kinds == {DAMAGED_HEADER, DAMAGED_BLOCK}
        kinds = {each.kind for each in pool.check("demo", renew=True).told}
        assert kinds == set()
        corrupt(base(pool), 3 * PAGE)
        with bad(3):
            read(pool, anew, 3 * PAGE, PAGE)


def test_a_checksum_that_is_lost_is_told(pool: Pool, volume: Volume) -> None:
    """The header says that there was one."""
    fd = os.open(pool.directory / "volumes" / "2.sums", os.O_RDWR)
    os.pwrite(fd, bytes(SECTOR_BYTES), 3 * SECTOR_BYTES)
    os.close(fd)
    told = pool.check("demo").told
    assert [(each.kind, each.page, each.pages) for each in told] == [(LOST_CHECKSUM, 2 * 127, 127)]
    assert pool.check("demo", renew=True).problems == 0


def test_checksums_go_with_their_layers(pool: Pool) -> None:
    """With a volume; and at a start those that a crash has left."""
    with pool.volume("demo") as volume:
        pool.write(volume, 0, content(0))
        snapshot(pool, "old")
    volumes = pool.directory / "volumes"
    assert list(volumes.glob("*.sums"))
    pool.run(pool.manager.remove("demo"))
    assert not list(volumes.glob("*.sums"))
    (volumes / "77.sums").touch()
    other = Pool(pool.directory / "other")
    other.close()
    pool.close()
    pool.__init__(pool.directory)  # type: ignore[misc]
    assert not list(volumes.glob("*.sums"))


def test_nothing_is_watched_that_nobody_reads(pool: Pool) -> None:
    """Least of all the file of a volume that has no layers any more, and is written."""
    assert isinstance(pool.stores, FileStores)
    watches = pool.stores._checks._watches
    with pool.volume("demo") as volume:
        pool.write(volume, 0, content(0))
        snapshot(pool, "old")
        pool.write(volume, 0, content(1))
        snapshot(pool, "young")
        assert read(pool, volume, 0, PAGE) == content(1)
        assert len(watches) == 2
        pool.run(pool.snapshots.remove("demo", "old"))
        pool.settle()
        assert read(pool, volume, 0, PAGE) == content(1)
        assert len(watches) == 1
    pool.settle()
    assert not watches
    pool.run(pool.snapshots.remove("demo", "young"))
    pool.settle()
    assert "demo" not in pool.manager.layers
    with pool.volume("demo") as volume:
        pool.write(volume, 0, content(2))
        assert read(pool, volume, 0, PAGE) == content(2)
    assert not watches


def test_the_background_keeps_its_pace(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many bytes a second: what was read too early is waited for."""
    pool = Pool(directory)
    pool.scrubber._bytes_per_s = 4 << 20
    now, waits = 0.0, []
    monkeypatch.setattr(pool.runtime, "clock", lambda: now)

    async def wait(_event: object, limit_s: float) -> bool:
        nonlocal now
        waits.append(limit_s)
        now += limit_s
        return False

    monkeypatch.setattr(pool.runtime, "wait", wait)
    pool.run(pool.manager.create("demo", 8 << 20))
    with pool.volume("demo") as volume:
        pool.write(volume, 0, b"x" * (8 << 20))
        snapshot(pool, "old")
    assert now == pytest.approx(2.25), "8 MiB, and 1 MiB for the layer itself"
    assert len(waits) == 8
    pool.close()
