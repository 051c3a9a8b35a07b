"""A store behind one file descriptor: on a disk, on tmpfs or in a memfd. What may run inline was probed at open.

tmpfs and memfd: everything is a copy in memory, plain preadv and pwritev inline. Disks: reads with RWF_NOWAIT, and a
thread for what is not cached; buffered writes inline up to 64 KiB while the bytes since the last fdatasync are within
a budget (above it the kernel may make the writer wait), else on a thread. The file is never mmapped: a full disk or a
medium error would be a SIGBUS (CONTRACTS 7).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from functools import partial

from shm_server.stores import linux
from shm_server.stores.base import INLINE_BYTES, Store, StoreFailedError, Views, copy_by_buffer, views_after
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES, RedoFile

# copy_file_range between file systems that won't, or of a kernel without it.
_CANNOT_COPY = frozenset((errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS))

MAX_INLINE_WRITE_BYTES = 64 << 10
DIRTY_BUDGET_BYTES = 64 << 20


class DescriptorStore:
    """Owns ``fd``."""

    can_discard = True
    must_settle = False
    max_atomic_write_bytes = MAX_ATOMIC_WRITE_BYTES

    def __init__(self, fd: int, *, is_memory: bool, redo: RedoFile | None = None) -> None:
        """``redo`` None: the store dies with the process, so that no write of it can be found half done."""
        self.fd = self.descriptor = fd
        self.redo = redo
        self._dirty_bytes = 0
        self._sync_lock = threading.Lock()  # one sync at a time
        self._lost = 0  # errno of the one that failed
        self.is_sync_instant = is_memory
        self.inline_bytes = INLINE_BYTES if is_memory else 0
        # Bound once, without a Python frame in between: this is the path of every I/O.
        self.read_now: Callable[[Views, int], int]
        self.write_now: Callable[[Views, int], int]
        self.is_memory = is_memory
        self.can_read_now = True  # what is in the kernel's cache, and nothing else
        if is_memory:
            self.read_now = partial(os.preadv, fd)
            self.write_now = partial(os.pwritev, fd)
        else:
            self.can_read_now = _can_read_nowait(fd)
            self.read_now = self._read_cached if self.can_read_now else _nothing_now
            self.write_now = self._write_buffered
        self.read_verified = self.read_now  # nothing of it has a checksum
        self.is_plain = True
        self.memory_descriptor = fd if is_memory else -1  # what read_verified() of memory reads

    def _read_cached(self, views: Views, offset: int) -> int:
        try:
            return os.preadv(self.fd, views, offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0

    def _write_buffered(self, views: Views, offset: int) -> int:
        length = sum(map(len, views))
        if length > MAX_INLINE_WRITE_BYTES or self._dirty_bytes + length > DIRTY_BUDGET_BYTES:
            return 0
        self._dirty_bytes += length
        return os.pwritev(self.fd, views, offset)

    @property
    def dirty_bytes(self) -> int:
        return self._dirty_bytes

    def read(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        done = 0
        while done < total:
            count = os.preadv(self.fd, views_after(views, done), offset + done)
            if count == 0:
                raise OSError(errno.EIO, f"the store ends at byte {offset + done}: it is shorter than its volume")
            done += count
        return total

    def write(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        self._dirty_bytes += total
        done = 0
        while done < total:
            done += os.pwritev(self.fd, views_after(views, done), offset + done)
        return total

    def write_bytes(self, data: bytes, offset: int) -> None:
        self.write((memoryview(data),), offset)

    def write_atomic(self, data: bytes, offset: int) -> None:
        self.allocate(offset, len(data))
        redo = self.redo
        if redo is None:
            self.write_bytes(data, offset)
            return
        write_by_redo(redo, data, offset, self.write_bytes, self.sync_data)

    def allocate(self, offset: int, length: int) -> None:
        """Have room for the range, so that writing it will not end in ENOSPC."""
        try:
            linux.fallocate(self.fd, linux.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise

    def fill(self, pattern: memoryview, offset: int) -> int:
        return self.write((pattern,), offset)

    def copy_from(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        done = 0
        while source.descriptor >= 0 and done < length:
            try:
                count = os.copy_file_range(
                    source.descriptor, self.fd, length - done, source_offset + done, offset + done
                )
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                break
            if count == 0:
                break  # the source ends here: reading it says so
            done += count
        self._dirty_bytes += done
        if done < length:
            copy_by_buffer(self, source, source_offset + done, offset + done, length - done)

    def punch(self, offset: int, length: int) -> None:
        try:
            linux.fallocate(self.fd, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self._write_zeros(offset, length)

    def zero(self, offset: int, length: int) -> bool:
        if self.is_sync_instant:
            return False  # tmpfs has no ZERO_RANGE
        try:
            linux.fallocate(self.fd, linux.FALLOC_FL_ZERO_RANGE | linux.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return False
        return True

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, INLINE_BYTES)))
        end = offset + length
        while offset < end:
            offset += self.write((zeros[: end - offset],), offset)

    def extent(self, offset: int, length: int) -> tuple[bool, int]:
        end = offset + length
        try:
            data = os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False, length  # nothing but a hole to the end
        if data > offset:
            return False, min(data, end) - offset
        return True, min(os.lseek(self.fd, offset, os.SEEK_HOLE), end) - offset

    def sync(self) -> None:
        self.sync_data()
        if self.redo is not None:
            self.redo.sync()

    def scrub(self) -> None:
        if self.redo is not None:
            self.redo.scrub()

    def settle(self) -> None:
        self.sync()

    def sync_data(self) -> None:
        dirty = self._dirty_bytes  # what is written while we wait is not covered
        self._make_durable(os.fdatasync)
        self._dirty_bytes = max(0, self._dirty_bytes - dirty)

    def _make_durable(self, sync: Callable[[int], None]) -> None:
        """The kernel tells a lost write once, to whoever syncs then: a flush, an atomic write, growing. Whoever comes
        later, or waits here meanwhile, must hear of it all the same."""
        with self._sync_lock:
            if self._lost:
                raise OSError(self._lost, "a write was lost")
            try:
                sync(self.fd)
            except OSError as error:
                self._lost = error.errno or errno.EIO
                raise

    def resize(self, size_bytes: int) -> None:
        os.ftruncate(self.fd, size_bytes)
        try:
            self._make_durable(os.fsync)
        except OSError as error:
            raise StoreFailedError(error.errno or errno.EIO, f"growing: {error.strerror}") from error

    def size_bytes(self) -> int:
        """Of the file."""
        return os.fstat(self.fd).st_size

    def allocated_bytes(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = self.descriptor = self.memory_descriptor = -1
            if self.redo is not None:
                self.redo.close()


def write_by_redo(
    redo: RedoFile, data: bytes, offset: int, write: Callable[[bytes, int], object], sync: Callable[[], object]
) -> None:
    """The four steps of redo.py, behind the first; ``write`` puts the data in place, ``sync`` makes that durable."""
    try:
        redo.record(offset, data)
    except OSError:
        _or_fail(redo.retire)
        raise
    _or_fail(lambda: write(data, offset))
    _or_fail(sync)
    _or_fail(redo.retire)


def _or_fail(act: Callable[[], object]) -> None:
    """A step behind which there is no way back."""
    try:
        act()
    except OSError as error:
        raise StoreFailedError(error.errno or errno.EIO, f"an atomic write: {error.strerror}") from error


def _nothing_now(_views: Views, _offset: int) -> int:
    return 0


def _can_read_nowait(fd: int) -> bool:
    probe = bytearray(1)
    try:
        os.preadv(fd, (probe,), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
