"""Every store keeps the same contract."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_server.stores import DelayRule, Stores, open_stores
from shm_server.stores.base import Store, views_after, views_until

SIZE = 4 << 20


@pytest.fixture(params=["file on a disk", "file on tmpfs", "memory", "delayed"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    rules = [DelayRule(operations=("write", "read", "discard", "flush"), offset=1 << 40)]
    if request.param == "file on tmpfs":
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            yield open_stores("file", Path(directory))
        return
    kind = "memory" if request.param == "memory" else "file"
    made = open_stores(kind, tmp_path, rules if request.param == "delayed" else ())
    yield made
    made.close()


@pytest.fixture
def store(stores: Stores) -> Iterator[Store]:
    stores.create("demo", SIZE)
    opened = stores.open("demo", SIZE, "00" * 16)
    yield opened
    opened.close()


def fill(store: Store, offset: int, data: bytes) -> None:
    view = memoryview(data)
    done = store.write_now([view], offset)
    if done < len(data):
        assert store.write(views_after([view], done), offset + done) == len(data) - done


def content(store: Store, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    done = store.read_now([memoryview(buffer)], offset)
    if done < length:
        store.read(views_after([memoryview(buffer)], done), offset + done)
    return bytes(buffer)


def test_what_was_written_is_read(store: Store) -> None:
    """Any offset, several views; what was not written is zeros."""
    data = os.urandom(300_000)
    assert store.write([memoryview(data)[:1000], memoryview(data)[1000:]], 777) == len(data)
    assert content(store, 777, len(data)) == data
    assert content(store, 0, 777) == bytes(777)
    fill(store, 100, b"small")
    assert content(store, 98, 9) == b"\0\0small\0\0"


def test_punched_ranges_read_zeros_to_the_byte(store: Store) -> None:
    """Unaligned edges are zeroed, neighbours stay, and the space is given back."""
    data = os.urandom(1 << 20)
    fill(store, 0, data)
    store.sync()
    before = store.allocated_bytes()
    store.punch(1000, 900_000)
    assert content(store, 0, 1 << 20) == data[:1000] + bytes(900_000) + data[901_000:]
    assert store.allocated_bytes() < before


def test_zeroed_ranges_read_zeros(store: Store) -> None:
    """Where the store can zero a range, it reads zeros; where it can't, it says so."""
    fill(store, 0, b"x" * 20_000)
    if store.zero(5, 10_000):
        assert content(store, 0, 20_000) == b"x" * 5 + bytes(10_000) + b"x" * 9_995


def test_extents_tell_data_from_holes(store: Store) -> None:
    """Page by page at least; a hole goes on to the end, and no answer goes beyond what was asked."""
    fill(store, 8192, b"x" * 4096)
    assert store.extent(0, 1 << 16) == (False, 8192)
    assert store.extent(8192, 1 << 16) == (True, 4096)
    assert store.extent(8192, 512) == (True, 512)
    assert store.extent(12288, 4096) == (False, 4096)


def test_growing_adds_zeros(store: Store) -> None:
    """The new end reads zeros, the old bytes stay."""
    fill(store, SIZE - 4, b"tail")
    store.resize(2 * SIZE)
    assert content(store, SIZE - 4, 8) == b"tail\0\0\0\0"
    assert content(store, 2 * SIZE - 8, 8) == bytes(8)


def test_stores_outlive_their_closing(stores: Stores) -> None:
    """Closed and opened again the bytes are there; removed they are not, and a second creation is refused."""
    stores.create("demo", SIZE)
    store = stores.open("demo", SIZE, "00" * 16)
    fill(store, 5, b"hello")
    store.sync()
    store.close()
    with pytest.raises(FileExistsError):
        stores.create("demo", SIZE)
    store = stores.open("demo", SIZE, "00" * 16)
    assert content(store, 5, 5) == b"hello"
    store.close()
    assert stores.allocated_bytes("demo") > 0
    stores.remove("demo")
    stores.remove("demo")
    assert stores.allocated_bytes("demo") == 0
    stores.create("demo", SIZE)


def test_null_drops_writes_and_reads_zeros(tmp_path: Path) -> None:
    """Nothing is kept, and what was in the buffer is overwritten by zeros."""
    stores = open_stores("null", tmp_path)
    stores.create("demo", SIZE)
    store = stores.open("demo", SIZE, "00" * 16)
    buffer = memoryview(bytearray(b"x" * 100))
    assert store.write_now([buffer], 0) == 100
    assert store.read_now([buffer], 50) == 100
    assert bytes(buffer) == bytes(100)
    store.close()


def test_a_file_that_went_missing_or_short_is_an_error(tmp_path: Path) -> None:
    """EIO with the path, never a volume of zeros."""
    stores = open_stores("file", tmp_path)
    with pytest.raises(OSError, match=r"demo\.raw is missing"):
        stores.open("demo", SIZE, "00" * 16)
    stores.create("demo", SIZE)
    os.truncate(tmp_path / "volumes" / "demo.raw", 10)
    with pytest.raises(OSError, match="has 10 bytes") as caught:
        stores.open("demo", SIZE, "00" * 16)
    assert caught.value.errno == errno.EIO


def test_a_delay_takes_its_time_on_the_blocking_call_only(tmp_path: Path) -> None:
    """The loop's call declines; the thread's call waits, counts down, and may fail."""
    rules = [DelayRule(operations=("write",), offset=4096, length=10, seconds=0.05, count=1)]
    rules += [DelayRule(operations=("flush",), error=errno.EIO)]
    stores = open_stores("memory", tmp_path, rules)
    stores.create("demo", SIZE)
    store = stores.open("demo", SIZE, "00" * 16)
    data = memoryview(b"x" * 20)
    assert store.write_now([data], 0) == 20
    assert store.write_now([data], 4090) == 0
    begun = time.monotonic()
    assert store.write([data], 4090) == 20
    assert time.monotonic() - begun >= 0.05
    assert store.write_now([data], 4090) == 20  # count is used up
    with pytest.raises(OSError):
        store.sync()
    store.close()
    stores.close()


def test_views_are_cut_where_asked() -> None:
    """views_after and views_until split a list of views at any byte."""
    views = [memoryview(b"abc"), memoryview(b""), memoryview(b"defg")]
    for cut in range(8):
        assert b"".join(views_until(views, cut)) + b"".join(views_after(views, cut)) == b"abcdefg"
        assert len(b"".join(views_until(views, cut))) == cut
