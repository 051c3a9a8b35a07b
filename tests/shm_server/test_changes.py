"""ListChanges: what is otherwise than in a snapshot, as the layers' maps tell it, against the bytes themselves."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator

import pytest

from iscsi_ovs.shm_client import Context, Volume
from tests.shm_server.conftest import ServerProcess

MIB = 1 << 20
PAGE = 4096
SIZE = 8 * MIB


@pytest.fixture
def context(server: ServerProcess) -> Iterator[Context]:
    with Context(server.socket_path) as made:
        made.create_volume("demo", SIZE)
        yield made


def write(context: Context, name: str, offset: int, data: bytes) -> None:
    with context.open(name) as volume:
        buffer = context.allocate(len(data))
        buffer.data[:] = data
        volume.write(buffer, len(data), offset)
        context.deallocate(buffer)


def discard(context: Context, name: str, offset: int, length: int) -> None:
    with context.open(name) as volume:
        volume.discard(offset, length)


def read(context: Context, volume: Volume) -> bytes:
    buffer = context.allocate(volume.size)
    volume.read(buffer, volume.size, 0)
    found = bytes(buffer.data)
    context.deallocate(buffer)
    return found


def changes(context: Context, name: str, base: str) -> list[tuple[int, int, bool]]:
    with context.open(name, os.O_RDONLY) as volume, context.open(base, os.O_RDONLY) as opened:
        return list(volume.changes(opened))


def test_written_and_given_back(context: Context) -> None:
    """What was written since is data, in whole pages; what was given back reads zeros; the rest is not there."""
    write(context, "demo", 0, b"a" * MIB)
    context.create_snapshot("demo", "monday")
    write(context, "demo", 5 * PAGE + 100, b"b" * 200)
    write(context, "demo", 4 * MIB, b"c" * 3 * PAGE)
    discard(context, "demo", 16 * PAGE, 4 * PAGE)
    context.create_snapshot("demo", "tuesday")
    expected = [(5 * PAGE, PAGE, True), (16 * PAGE, 4 * PAGE, False), (4 * MIB, 3 * PAGE, True)]
    assert changes(context, "demo@tuesday", "demo@monday") == expected
    assert changes(context, "demo", "demo@monday") == expected
    assert changes(context, "demo", "demo@tuesday") == []
    assert changes(context, "demo@monday", "demo@monday") == []


def test_over_clones(context: Context) -> None:
    """A clone that nobody has written is its snapshot; one that was, is that but for what was written."""
    write(context, "demo", 0, b"a" * MIB)
    context.create_snapshot("demo", "monday")
    context.clone_volume("demo", "monday", "copy")
    assert changes(context, "copy", "demo@monday") == []
    write(context, "copy", 0, b"b" * PAGE)
    write(context, "demo", PAGE, b"c" * PAGE)
    assert changes(context, "copy", "demo@monday") == [(0, PAGE, True)]
    context.create_snapshot("demo", "tuesday")
    assert changes(context, "copy", "demo@tuesday") == [(0, 2 * PAGE, True)]


def test_grown(context: Context) -> None:
    """What a volume has beyond the snapshot's end is a change only where it was written."""
    context.create_snapshot("demo", "monday")
    context.truncate_volume("demo", 2 * SIZE)
    write(context, "demo", 2 * SIZE - PAGE, b"z" * PAGE)
    assert changes(context, "demo", "demo@monday") == [(2 * SIZE - PAGE, PAGE, True)]


@pytest.mark.parametrize("seed", range(3))
def test_never_too_little(context: Context, seed: int) -> None:
    """Random writes, discards, and snapshots, some removed again so that layers are merged: every page that differs is
    told of, and what is told as zeros is zeros."""
    chance = random.Random(seed)
    kept: list[str] = []
    for number in range(12):
        for _ in range(8):
            at = chance.randrange(SIZE // 512) * 512
            length = min(SIZE - at, chance.randrange(1, 40) * 512)
            if chance.random() < 0.3:
                discard(context, "demo", at, length)
            else:
                write(context, "demo", at, chance.randbytes(length))
        context.create_snapshot("demo", f"s{number}")
        kept.append(f"s{number}")
        if number % 3 == 2:
            context.remove_snapshot("demo", kept.pop(chance.randrange(1, len(kept))))
    names = [f"demo@{name}" for name in kept]
    for old, new in itertools.pairwise(names):
        _check(context, new, old)
    _check(context, names[-1], names[0])


def _check(context: Context, new: str, old: str) -> None:
    with context.open(new, os.O_RDONLY) as volume, context.open(old, os.O_RDONLY) as base:
        now, then = read(context, volume), read(context, base)
        told: dict[int, bool] = {}
        for offset, length, is_data in volume.changes(base):
            told.update(dict.fromkeys(range(offset, offset + length, PAGE), is_data))
    for page in range(0, SIZE, PAGE):
        if now[page : page + PAGE] != then[page : page + PAGE]:
            assert page in told, f"page {page:#x} of {new} is otherwise than in {old}"
        if told.get(page) is False:
            assert not any(now[page : page + PAGE]), f"page {page:#x} of {new} is not zero"


def test_asked_on(context: Context) -> None:
    """A list that is too long for one answer comes in several; here each page of two is a run."""
    context.truncate_volume("demo", 64 * MIB)
    context.create_snapshot("demo", "monday")
    with context.open("demo") as volume, context.open("demo@monday", os.O_RDONLY) as base:
        buffer = context.allocate(PAGE)
        buffer.data[:] = b"x" * PAGE
        for start in range(0, 64 * MIB, 2 * PAGE * 1000):
            completions = [
                volume.aio_write(buffer, PAGE, at)
                for at in range(start, min(64 * MIB, start + 2 * PAGE * 1000), 2 * PAGE)
            ]
            for completion in completions:
                context.finish(completion)
        expected = [(at, PAGE, True) for at in range(0, 64 * MIB, 2 * PAGE)]
        assert list(volume.changes(base)) == expected
        found, offset = context.list_changes(volume, base, 32 * MIB)
        assert found == expected[len(expected) // 2 :]
        assert offset == 64 * MIB


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda context: changes(context, "demo@monday", "other@monday"), errno.EINVAL),
        (lambda context: changes(context, "plain", "demo@monday"), errno.EINVAL),
        (lambda context: changes(context, "demo@monday", "demo"), errno.EINVAL),
    ],
    ids=["another family", "without layers", "no snapshot"],
)
def test_refused(context: Context, make: Callable[[Context], object], number: int) -> None:
    """Two of no common past, and a base that may change meanwhile."""
    context.create_volume("other", SIZE)
    context.create_volume("plain", SIZE)
    for name in ("demo", "other"):
        context.create_snapshot(name, "monday")
    with pytest.raises(OSError) as caught:
        make(context)
    assert caught.value.errno == number


def test_closed_handles(context: Context) -> None:
    """A handle that is not there is EBADF; an offset within a page is EINVAL."""
    context.create_snapshot("demo", "monday")
    base = context.open("demo@monday", os.O_RDONLY)
    volume = context.open("demo", os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        context.list_changes(volume, base, 1)
    assert caught.value.errno == errno.EINVAL
    base.close()
    with pytest.raises(OSError) as caught:
        context.list_changes(volume, base, 0)
    assert caught.value.errno == errno.EBADF
