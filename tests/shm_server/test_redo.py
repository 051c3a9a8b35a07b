"""WRITE ATOMIC by a redo record: the process dies at every system call, the power fails at every moment, and always the
range is all old or all new; what was promised later is never undone by a record of before."""

from __future__ import annotations

import errno
import os
import random
import select
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shm_server.abi import layout
from shm_server.abi.layout import Opcode
from shm_server.runtime import Job, Runtime
from shm_server.stores import linux, open_stores
from shm_server.stores.base import Store, StoreFailedError
from shm_server.stores.file import FileStores
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES
from shm_server.volumes import compound
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.test_compound import Bytes
from tests.shm_server.test_volume import make, never

SIZE = 64 << 10
BIG = 4 << 20
UUID = "0123456789abcdef" * 2
LENGTH = 12 * 1024
OFFSET = 8192
OLD, NEW = b"o" * LENGTH, b"n" * LENGTH

Connect = Callable[..., AbiClient]
CALLS = ("pwritev", "pwrite", "fdatasync", "fsync", "posix_fallocate")


class CrashError(BaseException):
    """No code of ours catches this: the process is dead."""


class Killer:
    """Dies at the ``at``-th system call that changes something, after doing half of it where it is a write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, halfway: bool) -> None:
        self.at = at
        self.calls = 0
        self._halfway = halfway
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        monkeypatch.setattr(linux, "fallocate", self._wrap(linux.fallocate))

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def dies(fd: int, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls < self.at:
                return call(fd, *arguments)
            if self.calls == self.at and self._halfway and call.__name__ in ("pwritev", "pwrite"):
                data = arguments[0]
                whole = b"".join(data) if call.__name__ == "pwritev" else bytes(data)
                os.write_half(fd, whole[: len(whole) // 2], arguments[1])  # type: ignore[attr-defined]
            raise CrashError

        return dies


@pytest.fixture
def stores(tmp_path: Path) -> FileStores:
    made = FileStores(tmp_path)
    made.create("demo", SIZE)
    return made


def reopened(stores: FileStores, uuid: str = UUID) -> bytes:
    """What a new process finds in the range."""
    store = stores.open("demo", SIZE, uuid)
    data = read(store)
    store.close()
    return data


def read(store: Store, length: int = LENGTH, offset: int = OFFSET) -> bytes:
    data = bytearray(length)
    store.read((memoryview(data),), offset)
    return bytes(data)


def put(store: Store, data: bytes, offset: int = OFFSET) -> None:
    store.write((memoryview(data),), offset)


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_process_dies_at_any_system_call(
    stores: FileStores, monkeypatch: pytest.MonkeyPatch, halfway: bool, is_first: bool
) -> None:
    """Before it, or in the middle of what it writes; in a store's first atomic write, which makes the file, or later:
    old until the record is whole, new from then on, never a mixture; and a second opening finds the same."""
    monkeypatch.setattr(os, "write_half", os.pwrite, raising=False)
    seen = []
    for at in range(1, 100):
        store = stores.open("demo", SIZE, UUID)
        if not is_first:
            store.write_atomic(b"x" * 512, 0)
        put(store, OLD)
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, at, halfway=halfway)
            try:
                store.write_atomic(NEW, OFFSET)
                ended = True
            except CrashError:
                ended = False
        store.close()
        found = reopened(stores)
        assert found in (OLD, NEW), f"torn by call {at}"
        assert reopened(stores) == found
        seen.append(found)
        stores.remove("demo")
        stores.create("demo", SIZE)
        if ended:
            break
    assert killer.calls < 20
    assert seen[-1] == NEW
    assert seen == sorted(seen, reverse=True), "once new, it never was old again"
    assert seen.count(NEW) >= 3


def test_what_is_written_later_is_not_undone(stores: FileStores) -> None:
    """An acknowledged plain write over an atomic one survives the death of the process, without any flush."""
    store = stores.open("demo", SIZE, UUID)
    store.write_atomic(NEW, OFFSET)
    put(store, b"later" * 100, OFFSET + 512)
    store.close()
    assert reopened(stores) == NEW[:512] + b"later" * 100 + NEW[1012:]


def test_a_flush_beside_the_retirement_leaves_it_to_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes run on another thread: one that is over before the record is taken back has not made that durable."""
    pwrite = os.pwrite

    def flush_first(fd: int, data: bytes, offset: int) -> int:
        store.sync()
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", flush_first)
        store.write_atomic(NEW, OFFSET)
    synced: list[str] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fdatasync(fd)))
    store.sync()
    assert [Path(path).suffix for path in synced] == [".raw", ".redo"]


def test_a_record_of_another_volume_is_ignored(stores: FileStores, tmp_path: Path) -> None:
    """One that had the same name, or a record that any byte of was changed."""
    store = stores.open("demo", SIZE, UUID)
    put(store, OLD)
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, 6, halfway=False)  # behind the record, before the write in place
        with pytest.raises(CrashError):
            store.write_atomic(NEW, OFFSET)
    redo = tmp_path / "demo.redo"
    record = redo.read_bytes()
    assert record[:8] == b"OVSREDO1"
    store.close()
    assert reopened(stores, "ff" * 16) == OLD
    for at in (0, 8, 24, 32, 40, 4096, 4096 + LENGTH - 1):
        redo.write_bytes(record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :])
        assert reopened(stores) == OLD, f"byte {at}"
    for cut in (0, 10, 56, 4096, 4096 + LENGTH - 1):
        redo.write_bytes(record[:cut])
        assert reopened(stores) == OLD, f"cut at {cut}"
    redo.write_bytes(record)
    assert reopened(stores) == NEW


@pytest.mark.parametrize("length", [0, MAX_ATOMIC_WRITE_BYTES + 1, 1 << 63])
def test_a_header_that_cannot_be_is_ignored(stores: FileStores, tmp_path: Path, length: int) -> None:
    """Its length or place is none that we write, whatever its digest."""
    (tmp_path / "demo.redo").write_bytes(struct.pack("<8s16sQQ16s", b"OVSREDO1", bytes.fromhex(UUID), 0, length, b""))
    assert reopened(stores) == bytes(LENGTH)
    (tmp_path / "demo.redo").write_bytes(struct.pack("<8s16sQQ16s", b"OVSREDO1", bytes.fromhex(UUID), SIZE, 512, b""))
    assert reopened(stores) == bytes(LENGTH)


# Power cuts ---------------------------------------------------------------------------------------------------------


class Disk:
    """Records what the store does to its two files, so that any state a power cut could leave can be made of it: every
    512-byte block that was not synced is as before, or as it was after any later write of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str, int, bytes]] = []  # kind, file, offset, data
        for name in ("pwritev", "pwrite", "fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(fd: int, *arguments: Any) -> Any:
            result = call(fd, *arguments)
            file = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
            if name in ("pwritev", "pwrite"):
                data = arguments[0]
                whole = b"".join(data) if name == "pwritev" else bytes(data)
                self.events.append(("write", file, arguments[1], whole[:result]))
            elif file.startswith("demo"):
                self.events.append(("sync", file, 0, b""))
            return result

        return recorded

    def mark(self, words: str) -> None:
        self.events.append(("mark", words, 0, b""))

    def after_power_cut(self, at: int, seed: int) -> tuple[dict[str, bytes], set[str]]:
        """The files as a cut behind event ``at`` may leave them, and the marks passed before it."""
        choose = random.Random(seed)
        durable = {"demo.raw": bytearray(SIZE), "demo.redo": bytearray(4096 + LENGTH)}
        loose: dict[str, dict[int, list[bytes]]] = {name: {} for name in durable}
        marks = set()
        for kind, file, offset, data in self.events[:at]:
            if kind == "mark":
                marks.add(file)
            elif kind == "sync":
                for block, versions in loose[file].items():
                    durable[file][block * 512 : block * 512 + 512] = versions[-1]
                loose[file].clear()
            else:
                for block in range(offset // 512, (offset + len(data) + 511) // 512):
                    versions = loose[file].setdefault(block, [])
                    content = bytearray(versions[-1] if versions else durable[file][block * 512 : block * 512 + 512])
                    start, stop = max(offset, block * 512), min(offset + len(data), block * 512 + 512)
                    content[start - block * 512 : stop - block * 512] = data[start - offset : stop - offset]
                    versions.append(bytes(content))
        for file, blocks in loose.items():
            likely = choose.choice([0.0, 0.1, 0.5, 0.9, 1.0])
            for block, versions in blocks.items():
                if choose.random() < likely:
                    durable[file][block * 512 : block * 512 + 512] = choose.choice(versions)
        return {name: bytes(content) for name, content in durable.items()}, marks


def test_the_power_fails_at_any_moment(stores: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An atomic write, a plain one over it, flushed; another atomic one, a plain one over that. After each system call
    and in many ways: all or nothing while only the atomic one is there, what was acknowledged or flushed is there, and
    a record never comes back over what was flushed."""
    store = stores.open("demo", SIZE, UUID)
    store.write_atomic(b"z" * 512, 0)  # makes the file, whose name is durable from here on
    put(store, OLD)
    store.sync()
    other = b"m" * LENGTH
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        put(store, OLD)
        store.sync()
        disk.mark("begun")
        store.write_atomic(NEW, OFFSET)
        disk.mark("first done")
        put(store, b"p" * 1024, OFFSET)
        store.sync()
        disk.mark("flushed")
        store.write_atomic(other, OFFSET + 4096)
        disk.mark("second done")
        put(store, b"q" * 512, OFFSET + 4096)
    store.close()
    begun = disk.events.index(("mark", "begun", 0, b""))
    for at in range(begun, len(disk.events) + 1):
        for seed in range(24):
            files, marks = disk.after_power_cut(at, seed)
            for name, content in files.items():
                (tmp_path / name).write_bytes(content)
            store = stores.open("demo", SIZE, UUID)
            found = read(store, LENGTH + 4096)
            store.close()
            check(found, marks, other, f"cut behind event {at}, seed {seed}")


def check(found: bytes, marks: set[str], other: bytes, words: str) -> None:
    first, middle = found[:1024], found[1024:4096]
    second = found[4096:]
    tails = {(OLD + bytes(4096))[4096:], (NEW + bytes(4096))[4096:], other, b"q" * 512 + other[512:]}
    assert second in tails, words
    if "first done" not in marks:
        assert found in (OLD + bytes(4096), NEW + bytes(4096)), words
        return
    assert middle == NEW[1024:4096], words
    halves = {first[:512], first[512:]}
    assert halves <= ({b"p" * 512} if "flushed" in marks else {NEW[:512], b"p" * 512}), words
    if "second done" in marks:
        assert second in (other, b"q" * 512 + other[512:]), words
    else:
        assert second in (other, (NEW + bytes(4096))[4096:]), words


# Errors -------------------------------------------------------------------------------------------------------------


def fail_call(monkeypatch: pytest.MonkeyPatch, name: str, count: int, error: int) -> None:
    """The ``count``-th call of os.NAME, and no other, fails."""
    real, calls = getattr(os, name), iter(range(1, 1000))

    def fails(*arguments: Any) -> Any:
        if next(calls) == count:
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    monkeypatch.setattr(os, name, fails)


@pytest.fixture
def store(stores: FileStores) -> Iterator[Store]:
    opened = stores.open("demo", SIZE, UUID)
    opened.write_atomic(b"z" * 512, 0)
    put(opened, OLD)
    yield opened
    opened.close()


@pytest.mark.parametrize(("name", "count"), [("pwritev", 1), ("fdatasync", 1)])
def test_a_record_that_fails_is_taken_back(
    stores: FileStores, store: Store, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    """The write has failed and nothing is there of it, also after the death of the process; the next one succeeds."""
    with monkeypatch.context() as patch:
        fail_call(patch, name, count, errno.EIO)
        with pytest.raises(OSError) as caught:
            store.write_atomic(NEW, OFFSET)
    assert caught.value.errno == errno.EIO
    assert not isinstance(caught.value, StoreFailedError)
    assert read(store) == OLD
    assert reopened(stores) == OLD
    store.write_atomic(NEW, OFFSET)
    assert read(store) == NEW


@pytest.mark.parametrize(("name", "count"), [("pwritev", 2), ("fdatasync", 2), ("pwrite", 1)])
def test_no_way_back_behind_the_record(
    stores: FileStores, store: Store, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    """In place, its sync, the retirement: the store has failed, and opening it again makes the write whole."""
    with monkeypatch.context() as patch:
        fail_call(patch, name, count, errno.EIO)
        with pytest.raises(StoreFailedError):
            store.write_atomic(NEW, OFFSET)
    assert reopened(stores) == NEW


def test_a_lost_write_is_told_to_a_flush_beside_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it to one of the two that sync at the same time; the other one promises nothing either."""
    fdatasync = os.fdatasync
    flushed: list[BaseException | None] = []

    def flush() -> None:
        try:
            store.sync()
            flushed.append(None)
        except OSError as error:
            flushed.append(error)

    beside = threading.Thread(target=flush)

    def lose(fd: int) -> None:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith(".raw"):
            return
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        beside.start()
        raise OSError(errno.EIO, "a write was lost")

    monkeypatch.setattr(os, "fdatasync", lose)
    with pytest.raises(StoreFailedError):
        store.write_atomic(NEW, OFFSET)
    beside.join()
    assert isinstance(flushed[0], OSError)


def test_a_full_disk_is_an_error_before_anything_is_written(
    stores: FileStores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC of the allocation."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(linux, "fallocate", full)
        with pytest.raises(OSError) as caught:
            store.write_atomic(NEW, OFFSET)
    assert caught.value.errno == errno.ENOSPC
    assert reopened(stores) == OLD


def test_scrub_leaves_nothing_of_the_record(store: Store, tmp_path: Path) -> None:
    """After a sanitize operation the file beside the store has no old data."""
    store.write_atomic(NEW, OFFSET)
    assert NEW in (tmp_path / "demo.redo").read_bytes()
    store.scrub()
    assert not any((tmp_path / "demo.redo").read_bytes())


def test_it_goes_with_its_volume(stores: FileStores, store: Store, tmp_path: Path) -> None:
    """A removed store leaves no record."""
    stores.remove("demo")
    assert list(tmp_path.iterdir()) == []


# As a volume ----------------------------------------------------------------------------------------------------------


def test_a_volume_that_failed_refuses_to_write(
    run: Callable[..., Any], runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is opened anew; nothing else waits for its range."""
    volume = make(runtime, tmp_path, "file", SIZE)
    run(compound.write_atomic(volume, Bytes(OLD), 0, LENGTH, never))
    with monkeypatch.context() as patch:
        fail_call(patch, "fdatasync", 2, errno.EIO)
        with pytest.raises(StoreFailedError):
            run(compound.write_atomic(volume, Bytes(NEW), 0, LENGTH, never))
    assert volume.failure == errno.EIO
    with pytest.raises(OSError) as caught:
        run(compound.write_atomic(volume, Bytes(NEW), 0, LENGTH, never))
    assert caught.value.errno == errno.EIO
    assert not volume.ranges.is_guarded
    volume.close()


def test_a_fence_ends_a_long_line_of_them(runtime: Runtime, tmp_path: Path) -> None:
    """A thousand wait for their turn with the store: each ends, at no depth of the stack, and the next one has it."""
    volume = make(runtime, tmp_path, "file", BIG)
    ended: list[BaseException | None] = []
    is_fenced = False

    def job(number: int) -> Job:
        call = compound.write_atomic(volume, Bytes(b"n" * 512), number * 512, 512, lambda: is_fenced)
        return Job(call, lambda _value, error: ended.append(error))

    jobs = [job(number) for number in range(1000)]
    for each in jobs:
        each.start()
    is_fenced = True
    for each in jobs:
        each.cancel(OSError(errno.ECANCELED, "fenced"))
    while len(ended) < len(jobs):
        select.select([runtime.wake_fd], [], [], 10)
        runtime.collect()
        runtime.step()
    assert {error.errno for error in ended if isinstance(error, OSError)} == {errno.ECANCELED}
    assert sum(error is None for error in ended) == 1, "the one that had begun"
    assert volume.atomic_lock.is_free
    volume.close()


@pytest.mark.parametrize(
    ("kind", "number"), [("file", errno.EINVAL), ("memory", errno.EINVAL), ("null", errno.EOPNOTSUPP)]
)
def test_no_more_than_the_store_declares(
    run: Callable[..., Any], runtime: Runtime, tmp_path: Path, kind: str, number: int
) -> None:
    """A null store can't at all."""
    volume = make(runtime, tmp_path, kind, BIG)
    payload = Bytes(bytes(MAX_ATOMIC_WRITE_BYTES + 512))
    with pytest.raises(OSError) as caught:
        run(compound.write_atomic(volume, payload, 0, payload.length_bytes, never))
    assert caught.value.errno == number
    if kind != "null":
        assert run(compound.write_atomic(volume, payload, 0, MAX_ATOMIC_WRITE_BYTES, never)) == MAX_ATOMIC_WRITE_BYTES
    volume.close()


def test_the_size_is_told(tmp_path: Path) -> None:
    """Stores of files and of memory can, the one that keeps nothing can't."""
    sizes = [open_stores(kind, tmp_path).max_atomic_write_bytes for kind in ("file", "memory", "null")]
    assert sizes == [MAX_ATOMIC_WRITE_BYTES, MAX_ATOMIC_WRITE_BYTES, 0]


def test_kill_9_between_atomic_writes(start_server: Callable[..., ServerProcess], connect: Connect) -> None:
    """A client writes one pattern after the other as long as may be, the server is killed somewhere: one of them is
    there, whole, and not an older one than was acknowledged."""
    server = start_server()
    client = connect(server)
    client.create("demo", BIG)
    choose = random.Random(4)
    for _ in range(4):
        client = connect(server)
        client.attach()
        opened = client.open()
        assert opened.info.max_atomic_write_bytes == MAX_ATOMIC_WRITE_BYTES
        number = 0
        for number in range(1, choose.randrange(3, 9)):
            client.slots[:MAX_ATOMIC_WRITE_BYTES] = bytes([number]) * MAX_ATOMIC_WRITE_BYTES
            client.do(Opcode.WRITE_ATOMIC, 4096, MAX_ATOMIC_WRITE_BYTES, [(0, 0, MAX_ATOMIC_WRITE_BYTES)])
        client.slots[:MAX_ATOMIC_WRITE_BYTES] = bytes([number + 1]) * MAX_ATOMIC_WRITE_BYTES
        parts = [(0, 0, MAX_ATOMIC_WRITE_BYTES)]
        client.push(Opcode.WRITE_ATOMIC, 4096, MAX_ATOMIC_WRITE_BYTES, parts, flags=layout.FLAG_FUA)
        client.publish()
        server.kill()
        server.start()
        client = connect(server, "demo", "r")
        found = client.read(4096, MAX_ATOMIC_WRITE_BYTES)
        assert found in [bytes([each]) * MAX_ATOMIC_WRITE_BYTES for each in (number, number + 1)]
        client.close()


def test_a_record_without_room_is_told_before_its_place_is_written(
    stores: FileStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel takes a part of it: ENOSPC, the range is as it was, and the next one is done."""
    store = stores.open("demo", SIZE, UUID)
    store.write_atomic(OLD, OFFSET)
    pwritev = os.pwritev
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, [b"".join(views)[:5000]], at))
        with pytest.raises(OSError, match="no room") as caught:
            store.write_atomic(NEW, OFFSET)
        assert caught.value.errno == errno.ENOSPC
    assert reopened(stores) == OLD
    store.write_atomic(NEW, OFFSET)
    store.close()
    assert reopened(stores) == NEW
