"""A volume full of pages that are all different, its snapshots, and what can become of their bytes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shm_server.stores.base import BadPageError
from shm_server.stores.file import FileStores
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.volumes.volume import Volume
from tests.shm_server.pool import Pool

PAGES = 600
SIZE = PAGES * PAGE


def forget(pool: Pool) -> None:
    assert isinstance(pool.stores, FileStores)
    pool.stores._checks.forget(2)


def content(page: int, salt: int = 0) -> bytes:
    return (page * 7 + salt).to_bytes(4, "little") * (PAGE // 4)


def snapshot(pool: Pool, name: str, volume: str = "demo") -> None:
    pool.run(pool.snapshots.create(volume, name))
    pool.settle()


def corrupt(path: Path, offset: int) -> None:
    """One bit, by somebody else."""
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, offset)
    os.pwrite(fd, bytes((byte[0] ^ 0x10,)), offset)
    os.close(fd)


def base(pool: Pool) -> Path:
    return pool.directory / "volumes" / "demo.raw"


def read(pool: Pool, volume: Volume, offset: int, length: int) -> bytes:
    """As the server's loop does: it looks who has written before each batch."""
    assert pool.stores.layer_checks is not None
    for each in pool.stores.layer_checks.looks:
        each.look()
    return pool.read(volume, offset, length)


def bad(page: int) -> pytest.RaisesExc[BadPageError]:
    return pytest.RaisesExc(BadPageError, check=lambda error: error.errno == errno.EIO and error.offset == page * PAGE)


@contextmanager
def full_volume(pool: Pool) -> Iterator[Volume]:
    """Its pages are all different; snapshot "old" of it has all its checksums, and none is verified."""
    with pool.volume("demo") as opened:
        pool.write(opened, 0, b"".join(content(page) for page in range(PAGES)))
        snapshot(pool, "old")
        forget(pool)
        yield opened


@contextmanager
def on(medium: str, tmp_path: Path) -> Iterator[Path]:
    """On a "disk", as far as there is one, where reads that wait are told from others, or in "memory", on tmpfs."""
    if medium == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)
