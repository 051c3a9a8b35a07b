"""What every format of an image has in common: extents, a reader, a writer, and how zeros are recognised.

A reader says what is where (``extents``), a writer is told in ascending order; both work on an open file and know
nothing of volumes. Offsets and lengths are bytes of the disk that the image shows, unless they are called ``at``: those
are bytes of the file. What can't be read is an ImageError, a sentence for an operator.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from iscsi_ovs.errors import Error

STEP_BYTES = 1 << 20  # what is moved at once
PAGE_BYTES = 4096  # what a volume maps, and so the least that is worth a hole


class ImageError(Error):
    """A file that is no image, or not one that can be taken."""


class Kind(enum.Enum):
    HOLE = "nothing is said of it: it reads as what the image stands on, or zeros"
    ZERO = "it reads zeros, whatever the image stands on"
    DATA = "it is in the file, as it is"
    COMPRESSED = "it is in the file, compressed"


class Extent(NamedTuple):
    """A run of one kind; ``at`` says the reader where in the file it is."""

    offset: int
    length: int
    kind: Kind
    at: int = 0


class Reader(Protocol):
    """An image that is there."""

    size_bytes: int
    step_bytes: int  # no extent that has to be filled is longer

    def extents(self) -> Iterator[Extent]:
        """All of the disk, in order. ImageError where the image contradicts itself."""

    def fill(self, extent: Extent, view: memoryview) -> None:
        """Bring what an extent of data is into ``view``, which has its length."""


class Writer(Protocol):
    """An image that is made. Ranges come in ascending order, whole granules but for the end of the disk."""

    granule_bytes: int

    def write(self, offset: int, view: memoryview) -> None: ...

    def zero(self, offset: int, length: int) -> None:
        """It reads zeros; what was never told of does too, unless the image stands on another one."""

    def finish(self) -> None:
        """Everything was told. Not synced."""


def runs(view: memoryview, granule_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """``view`` as runs of granules (start, stop, is_zero). A bytearray is compared with a view by memcmp(3)."""
    size = len(view)
    zeros = bytearray(granule_bytes)
    start = 0
    was_zero: bool | None = None
    for at in range(0, size, granule_bytes):
        piece = view[at : at + granule_bytes]
        is_now = (zeros if len(piece) == granule_bytes else bytearray(len(piece))) == piece
        if is_now is not was_zero:
            if was_zero is not None:
                yield start, at, was_zero
            start, was_zero = at, is_now
    if was_zero is not None:
        yield start, size, was_zero
