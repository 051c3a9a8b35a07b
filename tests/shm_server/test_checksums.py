"""The file of a layer's checksums: what stands in it, what damage to it does, and that it knows whose it is."""

from __future__ import annotations

import errno
import logging
import os
from array import array
from pathlib import Path

import crc32c
import pytest

from shm_server.stores.checksums import BLOCK_PAGES, INSTEAD_OF_NONE, PAGE_BYTES, SECTOR_BYTES, SumsFile, sums_of
from shm_server.stores.clock import Clock

UUID = "5" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "7.sums"


@pytest.fixture
def sums(path: Path) -> SumsFile:
    return SumsFile(path, 7, UUID)


def again(path: Path) -> SumsFile:
    return SumsFile(path, 7, UUID)


def damage(path: Path, at: int) -> None:
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, at)
    os.pwrite(fd, bytes((byte[0] ^ 1,)), at)
    os.close(fd)


def test_what_is_put_is_found_again(sums: SumsFile, path: Path) -> None:
    """Across blocks, by another that opens the file; what was not put is none, and no file is none everywhere."""
    assert not sums.is_there
    assert list(sums.entries(0, 3)) == [0, 0, 0]
    first = BLOCK_PAGES - 2
    sums.put(first, array("I", range(1, 300)))
    for each in (sums, again(path)):
        assert list(each.entries(first - 1, 302)) == [0, *range(1, 300), 0, 0]
    assert list(sums.entries_now(first, 2) or ()) == [1, 2]
    sums.put(first, array("I", bytes(4 * 299)))
    assert not any(path.read_bytes()[SECTOR_BYTES:]), "a block without checksums is a hole's bytes"


def test_runs_of_checksums_are_found_between_holes(sums: SumsFile) -> None:
    """In a block with others, in the one that shares the header's room, far away; cut where they are not asked for."""
    assert sums.next_run(0, 1 << 40) is None
    for first, count in ((3, 2), (BLOCK_PAGES, 1), (1 << 30, 2000)):
        sums.put(first, array("I", [7] * count))
    assert sums.next_run(0, 1 << 40) == (3, 2)
    assert sums.next_run(4, 1 << 40) == (4, 1)
    assert sums.next_run(5, 1 << 40) == (BLOCK_PAGES, 1)
    assert sums.next_run(5, BLOCK_PAGES) is None
    assert sums.next_run(BLOCK_PAGES + 1, 1 << 30) is None
    found, page = 0, BLOCK_PAGES + 1
    while (run := sums.next_run(page, (1 << 30) + 1999)) is not None:
        found += run[1]
        page = sum(run)
    assert (found, page) == (1999, (1 << 30) + 1999)


def test_the_file_is_as_the_documentation_says(sums: SumsFile, path: Path) -> None:
    """A reader made from docs/ON-DISK.md alone finds a checksum, and how far the file goes."""
    sums.put(BLOCK_PAGES + 1, array("I", [0xDEADBEEF]))
    sums.cover(500)
    raw = path.read_bytes()
    assert raw[:8] == b"OVSCRC32"
    assert [int.from_bytes(raw[at : at + size], "little") for at, size in ((8, 4), (12, 4), (16, 8), (40, 8))] == [
        *(1, 4096, 7, 500)
    ]
    assert raw[24:40].hex() == UUID
    assert crc32c.crc32c(raw[:48]).to_bytes(4, "little") == raw[48:52]
    block = raw[512 + 1 * 512 :][:512]
    seed = crc32c.crc32c(raw[:40])
    assert crc32c.crc32c(block[4:], crc32c.crc32c((1).to_bytes(8, "little"), seed)).to_bytes(4, "little") == block[:4]
    assert int.from_bytes(block[4 + 4 * 1 :][:4], "little") == 0xDEADBEEF


def test_checksums_of_pages() -> None:
    """CRC32C of each; 0 is another's place; a last page that is cut ends in zeros."""
    page = bytes(range(256)) * 16
    assert sums_of(memoryview(page + bytes(PAGE_BYTES) + page[:100])) == array(
        "I", [crc32c.crc32c(page), crc32c.crc32c(bytes(PAGE_BYTES)), crc32c.crc32c(page[:100].ljust(PAGE_BYTES, b"\0"))]
    )
    # The CRC is linear: four bytes at the end make it whatever one likes.
    tail = next(tail for tail in (_tail_for_zero(page[:-4]),))
    assert crc32c.crc32c(page[:-4] + tail) == 0
    assert list(sums_of(memoryview(page[:-4] + tail))) == [INSTEAD_OF_NONE]


def _tail_for_zero(data: bytes) -> bytes:
    """Solve for the 32 bits of the tail, which the checksum depends on linearly."""
    base = crc32c.crc32c(data + bytes(4))
    rows = []
    for bit in range(32):
        value = crc32c.crc32c(data + (1 << bit).to_bytes(4, "little")) ^ base
        rows.append((value, 1 << bit))
    found = 0
    for bit in reversed(range(32)):
        pivot = next(row for row in rows if row[0] >> bit & 1)
        rows = [
            (row[0] ^ pivot[0], row[1] ^ pivot[1]) if row[0] >> bit & 1 else row for row in rows if row is not pivot
        ]
        if base >> bit & 1:
            base, found = base ^ pivot[0], found ^ pivot[1]
    assert base == 0
    return found.to_bytes(4, "little")


def test_a_damaged_block_is_said_and_not_believed(sums: SumsFile, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its pages have no checksum, its neighbours theirs; one line names file, block and pages; nothing that is put
    makes it whole, but renew() does."""
    sums.put(0, array("I", [9]) * (3 * BLOCK_PAGES))
    sums.cover(3 * BLOCK_PAGES)
    damage(path, SECTOR_BYTES * 2 + 100)
    caplog.set_level(logging.ERROR)
    found = again(path)
    for _ in range(2):
        assert list(found.entries(BLOCK_PAGES - 1, BLOCK_PAGES + 2)) == [9, *[0] * BLOCK_PAGES, 9]
    assert found.entries_now(BLOCK_PAGES, 1) is None
    assert [record.message for record in caplog.records] == [
        f"{path} is damaged: block 1, byte 1024: pages 127 to 253 of layer 7 are read without being checked"
    ]
    found.put(BLOCK_PAGES, array("I", [1]))
    assert list(again(path).entries(BLOCK_PAGES, 2)) == [0, 0]
    found.renew()
    assert found.covered == 0
    found.put(BLOCK_PAGES, array("I", [1]))
    assert list(again(path).entries(BLOCK_PAGES, 2)) == [1, 0]


@pytest.mark.parametrize("at", [0, 12, 16, 30, 44, 50])
def test_a_damaged_header_says_nothing_of_the_blocks(sums: SumsFile, path: Path, at: int) -> None:
    """What blocks say of themselves counts; how far they go is unknown, and stays so until renew()."""
    sums.put(0, array("I", [9]))
    sums.cover(1)
    damage(path, at)
    found = again(path)
    assert list(found.entries(0, 2)) == [9, 0]
    assert found.is_header_damaged
    found.cover(1)
    for is_damaged in (True, False):
        looked = again(path)
        assert looked.is_there
        assert looked.is_header_damaged is is_damaged
        found.renew()


def test_another_layers_file_is_not_believed(sums: SumsFile, path: Path) -> None:
    """Neither its header nor its blocks: both begin with the layer's number and its volume's UUID."""
    sums.put(0, array("I", [9]))
    for other in (SumsFile(path, 8, UUID), SumsFile(path, 7, "6" * 32)):
        assert list(other.entries(0, 1)) == [0]
        assert other.is_header_damaged
        assert other.damaged_blocks == {0}


def test_a_newer_format_is_refused_by_name(sums: SumsFile, path: Path) -> None:
    """EPROTONOSUPPORT, with the file and both numbers."""
    sums.create()
    with path.open("r+b") as file:
        file.seek(8)
        file.write((2).to_bytes(4, "little"))
    with pytest.raises(OSError, match=r"7\.sums has format 2, this server knows up to 1") as caught:
        again(path).entries(0, 1)
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_no_file_is_made_for_a_layer_that_is_no_more(sums: SumsFile, path: Path) -> None:
    """remove() is the end of it, whoever still works on it."""
    sums.put(0, array("I", [9]))
    sums.remove()
    late = SumsFile(path, 7, UUID)
    late.is_gone = True
    with pytest.raises(FileNotFoundError):
        late.put(0, array("I", [9]))
    assert not path.exists()


def test_few_files_are_open(tmp_path: Path) -> None:
    """As many as the clock keeps, whichever were used; what was thrown away is opened again."""
    files = Clock(2)
    every = [SumsFile(tmp_path / f"{number}.sums", number, UUID, files) for number in range(6)]
    for number, each in enumerate(every):
        each.put(0, array("I", [number + 1]))
    for _ in range(2):
        assert [each.entries(0, 1)[0] for each in every] == [1, 2, 3, 4, 5, 6]
    opened = [Path(f"/proc/self/fd/{fd}").resolve() for fd in os.listdir("/proc/self/fd")]
    assert sum(path.parent == tmp_path for path in opened) <= 2
