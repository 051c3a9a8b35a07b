"""Raw images: byte n of the disk is byte n of the file, and what is zero need not be there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from iscsi_ovs.images.image import PAGE_BYTES, STEP_BYTES, Extent, ImageError, Kind

# What a file system without holes says to SEEK_DATA, and a block device.
_NO_HOLES = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY)


class RawReader:
    """On an open file or block device, which stays the caller's."""

    step_bytes = STEP_BYTES

    def __init__(self, fd: int, file_bytes: int) -> None:
        if file_bytes == 0:
            raise ImageError("it is empty")
        self._fd = fd
        self.size_bytes = file_bytes

    def extents(self) -> Iterator[Extent]:
        at = 0
        while at < self.size_bytes:
            start, stop = self._data_from(at)
            if start > at:
                yield Extent(at, start - at, Kind.HOLE)
            for offset in range(start, stop, STEP_BYTES):
                yield Extent(offset, min(STEP_BYTES, stop - offset), Kind.DATA, offset)
            at = stop

    def _data_from(self, at: int) -> tuple[int, int]:
        """The first run of data behind ``at``; an empty one at the end where there is none."""
        end = self.size_bytes
        try:
            start = min(os.lseek(self._fd, at, os.SEEK_DATA), end)
            return start, min(os.lseek(self._fd, start, os.SEEK_HOLE), end) if start < end else end
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end, end
            if error.errno in _NO_HOLES:
                return at, end
            raise

    def fill(self, extent: Extent, view: memoryview) -> None:
        done = 0
        while done < len(view):
            step = os.preadv(self._fd, [view[done:]], extent.at + done)
            if step == 0:
                raise ImageError(f"it has become shorter: it had {self.size_bytes} bytes")
            done += step


class RawWriter:
    """On an open, empty file, which stays the caller's."""

    granule_bytes = PAGE_BYTES

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        os.ftruncate(fd, size_bytes)

    def write(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)

    def zero(self, offset: int, length: int) -> None:
        pass  # nothing was ever written there

    def finish(self) -> None:
        pass
