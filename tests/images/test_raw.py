"""Raw images: holes stay holes, and a file that shrinks meanwhile is told of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iscsi_ovs.images.image import STEP_BYTES, Extent, ImageError, Kind
from iscsi_ovs.images.raw import RawReader, RawWriter
from tests.images.pictures import MIB


@pytest.fixture
def fd(short_dir: Path) -> int:
    """Of a new file on tmpfs, which has holes."""
    return os.open(short_dir / "a.raw", os.O_RDWR | os.O_CREAT)


def test_holes(fd: int) -> None:
    """What was written is data, in steps; the rest is holes, the last one too."""
    writer = RawWriter(fd, 8 * MIB)
    writer.write(MIB, memoryview(b"x" * (2 * MIB)))
    writer.zero(3 * MIB, MIB)
    writer.finish()
    extents = list(RawReader(fd, 8 * MIB).extents())
    assert extents == [
        Extent(0, MIB, Kind.HOLE),
        Extent(MIB, STEP_BYTES, Kind.DATA, MIB),
        Extent(2 * MIB, STEP_BYTES, Kind.DATA, 2 * MIB),
        Extent(3 * MIB, 5 * MIB, Kind.HOLE),
    ]
    assert os.fstat(fd).st_blocks * 512 == 2 * MIB


def test_odd_end(fd: int) -> None:
    """The last bytes need be no whole sector."""
    os.pwrite(fd, b"end", 4096)
    reader = RawReader(fd, 4099)
    last = list(reader.extents())[-1]
    view = memoryview(bytearray(last.length))
    reader.fill(last, view)
    assert last.offset + last.length == 4099
    assert bytes(view[-3:]) == b"end"


def test_became_shorter(fd: int) -> None:
    """A file that is cut under its reader is an error, not zeros."""
    os.pwrite(fd, b"x" * 8192, 0)
    reader = RawReader(fd, 8192)
    extent = next(reader.extents())
    os.ftruncate(fd, 4096)
    with pytest.raises(ImageError, match="become shorter: it had 8192 bytes"):
        reader.fill(extent, memoryview(bytearray(extent.length)))


def test_empty(fd: int) -> None:
    """No bytes are no disk."""
    with pytest.raises(ImageError, match="empty"):
        RawReader(fd, 0)
