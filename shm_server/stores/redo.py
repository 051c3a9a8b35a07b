"""The redo record of a store: what makes a write whole across kill -9 and power cuts (WRITE ATOMIC, SBC-4 5.47).

    1. space for the range is allocated           running out of space is an error before anything is written
    2. the record is written and synced           torn: its digest is wrong, and the range has its old bytes
    3. the range is written in place, and synced  torn: the record is whole, and is written again at the next open
    4. the record is retired, then the write is acknowledged

Step 4 comes before anybody may write to the range again, so a process that dies never finds a record older than what
stands in place. It is not synced: a power cut may bring the record back. Then what it is written over must not have
been promised to anybody, so whoever makes later writes durable (``Store.sync``) syncs the retirement too. And it comes
after the sync of step 3, because the kernel may write it to the disk whenever it likes.

There is one record at a time, in a file beside the store, allocated whole when it is first needed. This file knows
no volumes; ``uuid`` tells a record of this store from one of another that had its name.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

# Every byte is written twice, synced twice, and copied once more than in a plain write, while the range is closed to
# others: so no more than one step of any long work, which is 256 blocks where they have 4096 bytes.
MAX_ATOMIC_WRITE_BYTES = 1 << 20

_MAGIC = b"OVSREDO1"
_DATA_OFFSET = 4096  # the header has a page of its own
_DIGEST_BYTES = 16
_HEADER = struct.Struct(f"<8s16sQQ{_DIGEST_BYTES}s")  # magic, uuid, offset, length, digest of all that and the data
_FILE_BYTES = _DATA_OFFSET + MAX_ATOMIC_WRITE_BYTES


class RedoFile:
    """Calls may come from any thread; record() and retire() one at a time."""

    def __init__(self, path: Path, uuid: str) -> None:
        self.path = path
        self._uuid = bytes.fromhex(uuid).ljust(16, b"\0")[:16]
        self._fd = -1
        self._is_retirement_dirty = False
        self._is_name_durable = False

    def record(self, offset: int, data: bytes) -> None:
        """The write is durable, if not in its place, when this returns. After an OSError: retire() it."""
        if self._fd < 0:
            self._fd = self._create()
        whole = self._header(offset, data).ljust(_DATA_OFFSET, b"\0"), data
        if os.pwritev(self._fd, whole, 0) < _DATA_OFFSET + len(data):  # a file system that writes nothing over in place
            raise OSError(errno.ENOSPC, f"no room for a record in {self.path}")
        self._make_durable()

    def retire(self) -> None:
        """The record is never to be written again; durable with the next sync()."""
        if self._fd >= 0:
            os.pwrite(self._fd, bytes(_HEADER.size), 0)
            self._is_retirement_dirty = True  # behind the write: a sync on another thread would take it for its own

    def sync(self) -> None:
        """What was retired stays so after a power cut."""
        if self._is_retirement_dirty:
            self._is_retirement_dirty = False  # before the sync: a retirement that comes meanwhile sets it again
            os.fdatasync(self._fd)

    def replay(self, write: Callable[[bytes, int], object], sync: Callable[[], object], size_bytes: int) -> None:
        """``write`` a record that is whole to its place in the store: when that is opened, before anybody looks."""
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        found = self._read(size_bytes)
        if found is not None:
            offset, data = found
            log.warning("%s: a write of %d bytes at %d was under way: it is done now", self.path, len(data), offset)
            self._make_durable()  # its writer may have been killed before that
            write(data, offset)
            sync()
        self.retire()
        self.sync()

    def scrub(self) -> None:
        """Nothing that was ever recorded can be read here any more."""
        if self._fd >= 0:
            os.pwrite(self._fd, bytes(_FILE_BYTES), 0)
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Inside ---------------------------------------------------------------------------------------------------------

    def _make_durable(self) -> None:
        """The record, and the file's name: whoever made that may have been killed before it was so."""
        os.fdatasync(self._fd)
        if not self._is_name_durable:
            sync_directory(self.path.parent)
            self._is_name_durable = True

    def _create(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _FILE_BYTES)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _header(self, offset: int, data: bytes) -> bytes:
        fields = _HEADER.pack(_MAGIC, self._uuid, offset, len(data), bytes(_DIGEST_BYTES))
        digest = hashlib.blake2b(fields, digest_size=_DIGEST_BYTES)
        digest.update(data)
        return fields[:-_DIGEST_BYTES] + digest.digest()

    def _read(self, size_bytes: int) -> tuple[int, bytes] | None:
        """Offset and data of the record, if there is one that is whole and this store's."""
        header = os.pread(self._fd, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            return None
        _, _, offset, length, _ = _HEADER.unpack(header)
        if not 0 < length <= MAX_ATOMIC_WRITE_BYTES or offset + length > size_bytes:
            return None
        data = os.pread(self._fd, length, _DATA_OFFSET)
        return (offset, data) if self._header(offset, data) == header else None


def sync_directory(directory: Path) -> None:
    """Names made and removed in it are durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """With those above it that are missing; their names are durable, even if one was there that a crash left."""
    if not directory.parent.exists():
        make_directory(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        sync_directory(directory.parent)
    except PermissionError:  # somebody else's, who made this one for us
        pass
