"""The checksums of one sealed layer: <pool>/volumes/N.sums, a CRC32C for each 4 KiB page of its data file.

    header (512 bytes) | block (512 bytes) | block | …

A block has the checksums of 127 pages, and one of its own that begins with the layer's identity: a sector, which is
written whole or not at all, so a block that does not fit is damage, never a crash. Then its pages count as having no
checksum, and a line says so: good data are not made unreadable by a bad checksum file. 0 is "none"; a hole is a block
full of that. The header says up to which page every page that is not a hole has its checksum; that is written behind a
sync of the blocks. docs/ON-DISK.md is the long form of this.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
from array import array
from collections.abc import Callable
from pathlib import Path

import crc32c

from shm_server.stores import linux
from shm_server.stores.clock import Clock
from shm_server.stores.redo import sync_directory

log = logging.getLogger(__name__)

FORMAT = 1
PAGE_BYTES = 4096
NONE = 0
INSTEAD_OF_NONE = 0xFFFF_FFFF  # for a page whose CRC32C is 0

_MAGIC = b"OVSCRC32"
_HEADER = struct.Struct("<8sIIQ16sQI")  # magic, format, page bytes, layer, volume's uuid, covered pages, crc32c
_IDENTITY_BYTES = 40  # of it, up to what changes
ZERO_SUM = crc32c.crc32c(bytes(PAGE_BYTES))
SECTOR_BYTES = 512
BLOCK_PAGES = (SECTOR_BYTES - 4) // 4
ENTRY_BITS = 32
BLOCKS_AT_ONCE = 4096 // SECTOR_BYTES
_EMPTY = bytes(SECTOR_BYTES)


def sums_name(number: object) -> str:
    """How the file of a layer's checksums is called."""
    return f"{number}.sums"


def sums_of(data: memoryview) -> array[int]:
    """The checksum of each page of ``data``; a last one that is not whole is one that ends in zeros."""
    crc = crc32c.crc32c
    whole = len(data) - len(data) % PAGE_BYTES
    sums = array("I", [crc(data[at : at + PAGE_BYTES]) or INSTEAD_OF_NONE for at in range(0, whole, PAGE_BYTES)])
    if whole < len(data):
        sums.append(crc(bytes(data[whole:]).ljust(PAGE_BYTES, b"\0")) or INSTEAD_OF_NONE)
    return sums


class _Owner:
    """Closes a descriptor when it goes. Not SumsFile itself: who is found by a weak reference must have no __del__, or
    another thread may find it while that runs."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class SumsFile:
    """Any thread may look; ``lock`` is for whoever changes something, and held by the methods that do. The file is
    opened when it is needed, and one of ``files`` then."""

    def __init__(
        self,
        path: Path,
        layer: int,
        uuid: str,
        files: Clock | None = None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        """``changed`` is called behind whatever makes the file longer, or fills a hole of it."""
        self.path = path
        self.was_used = True
        self.lock = threading.RLock()
        self.is_being_merged = False  # its data change: nobody else makes checksums of them
        self.merges = 0  # that have begun, and perhaps were given up: what was known before is not so any more
        self.is_gone = False  # so is the layer: no file is made for it any more
        self.damaged_blocks: set[int] = set()
        self.is_header_damaged = False
        self.covered = 0  # pages, from the first on, of which each has its checksum or is a hole
        self._layer = layer
        self._identity = _HEADER.pack(_MAGIC, FORMAT, PAGE_BYTES, layer, bytes.fromhex(uuid), 0, 0)[:_IDENTITY_BYTES]
        self._seed = crc32c.crc32c(self._identity)
        self._files = files or Clock(1)
        self._changed = changed
        self._owner: _Owner | None = None
        self._is_there = False
        self._has_looked = False
        self._has_durable_name = False
        self._now_flags: int | None = None  # of preadv, to read at once; None: can't

    # Opening --------------------------------------------------------------------------------------------------------

    @property
    def is_there(self) -> bool:
        """EPROTONOSUPPORT: in a newer format."""
        if not self._has_looked:
            with self.lock:
                self._look()
        return self._is_there

    def _look(self) -> None:
        if self._has_looked:
            return
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            self._has_looked = True
            return
        try:
            self._check_header(fd, os.pread(fd, SECTOR_BYTES, 0))
        except OSError:
            os.close(fd)
            raise
        self._opened(fd)

    def _opened(self, fd: int) -> _Owner:
        if not self._has_looked:
            self._now_flags = 0 if linux.filesystem_magic(fd) == linux.TMPFS_MAGIC else os.RWF_NOWAIT
        owner = self._owner = _Owner(fd)
        self._is_there = self._has_looked = True
        self.was_used = True
        self._files.add(self)
        return owner

    def throw_away(self) -> None:
        """The open file; whoever uses it at this moment has a reference."""
        self._owner = None

    def _open(self) -> _Owner:
        """Of a file that is there; keep the reference while its descriptor is used."""
        owner = self._owner
        if owner is None:
            with self.lock:
                owner = self._owner or self._opened(os.open(self.path, os.O_RDWR | os.O_CLOEXEC))
        self.was_used = True
        return owner

    def _check_header(self, fd: int, raw: bytes) -> None:
        if not any(raw):  # a power cut came before the header was on the disk
            os.pwrite(fd, self._header(0), 0)
            self._changed()
            return
        _, version, _, _, _, covered, checksum = _HEADER.unpack(raw[: _HEADER.size].ljust(_HEADER.size, b"\0"))
        if raw.startswith(_MAGIC) and version > FORMAT:
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"{self.path} has format {version}, this server knows up to {FORMAT}: a newer shm-server wrote it",
            )
        if raw[:_IDENTITY_BYTES] == self._identity and checksum == crc32c.crc32c(raw[: _HEADER.size - 4]):
            self.covered = covered
            return
        self.is_header_damaged = True
        log.error("%s is damaged: its header is not that of layer %d's checksums", self.path, self._layer)

    def create(self) -> None:
        """Have the file, with no checksum in it; cover() makes it durable."""
        with self.lock:
            self._look()
            if self._is_there:
                return
            if self.is_gone:
                raise OSError(errno.ENOENT, f"layer {self._layer} is no more")
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.pwrite(fd, self._header(0), 0)
            self._has_looked = False  # what it lies on was not asked yet
            self._opened(fd)
            self._changed()

    def _header(self, covered: int) -> bytes:
        fields = self._identity + covered.to_bytes(8, "little")
        return (fields + crc32c.crc32c(fields).to_bytes(4, "little")).ljust(SECTOR_BYTES, b"\0")

    # Looking --------------------------------------------------------------------------------------------------------

    def entries(self, first: int, count: int) -> array[int]:
        """The checksums of so many pages, from ``first`` on; NONE where there is none."""
        try:
            found = self._entries(first, count, 0) if self.is_there else None
            if found is None:
                with self.lock:  # who writes a block may have been in the middle of it
                    found = self._entries(first, count, 0, is_last=True) if self.is_there else None
        except FileNotFoundError:
            if not self.is_gone:
                raise
            found = None  # who reads a layer that is no more just now has begun before that
        return array("I", bytes(4 * count)) if found is None else found

    def entries_now(self, first: int, count: int) -> array[int] | None:
        """The same, where that can be had at once; else None."""
        if not self._has_looked:
            return None
        if not self._is_there:
            return array("I", bytes(4 * count))
        if self._now_flags is None:
            return None
        try:
            return self._entries(first, count, self._now_flags)
        except (BlockingIOError, FileNotFoundError):
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._now_flags = None
            return None

    def _entries(self, first: int, count: int, flags: int, *, is_last: bool = False) -> array[int] | None:
        """None: a block that does not fit; with ``is_last`` that is damage."""
        start, end = first // BLOCK_PAGES, (first + count - 1) // BLOCK_PAGES + 1
        raw = bytearray((end - start) * SECTOR_BYTES)
        owner = self._open()
        got = os.preadv(owner.fd, (raw,), (1 + start) * SECTOR_BYTES, flags)
        if got < len(raw) and flags and (1 + start) * SECTOR_BYTES + got < os.fstat(owner.fd).st_size:
            return None
        found = array("I")
        for number in range(start, end):
            block = raw[(number - start) * SECTOR_BYTES : (number - start + 1) * SECTOR_BYTES]
            if block != _EMPTY and not self._fits(number, block):
                if not is_last:
                    return None
                self._complain(number)
                block = bytearray(SECTOR_BYTES)
            found.frombytes(block[4:])
        begin = first - start * BLOCK_PAGES
        return found[begin : begin + count]

    def _fits(self, number: int, block: bytearray) -> bool:
        return self._checksum(number, block[4:]) == int.from_bytes(block[:4], "little")

    def _checksum(self, number: int, entries: bytes | bytearray) -> int:
        return crc32c.crc32c(entries, crc32c.crc32c(number.to_bytes(8, "little"), self._seed))

    def _complain(self, number: int) -> None:
        if number not in self.damaged_blocks:
            self.damaged_blocks.add(number)
            first = number * BLOCK_PAGES
            log.error(
                "%s is damaged: block %d, byte %d: pages %d to %d of layer %d are read without being checked",
                *(self.path, number, (1 + number) * SECTOR_BYTES, first, first + BLOCK_PAGES - 1, self._layer),
            )

    def next_page(self, page: int) -> int | None:
        """Where, from ``page`` on, the next block stands that is not a hole: its first page, or ``page`` itself."""
        if not self.is_there:
            return None
        block = page // BLOCK_PAGES
        owner = self._open()
        try:
            at = os.lseek(owner.fd, (1 + block) * SECTOR_BYTES, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None
        return max(page, (at // SECTOR_BYTES - 1) * BLOCK_PAGES)

    def next_run(self, page: int, end: int) -> tuple[int, int] | None:
        """The next pages in a row, from ``page`` on and before ``end``, that have a checksum: the first, how many."""
        while (at := self.next_page(page)) is not None and at < end:
            # No more than a file system's block, which the header shares with the first ones: the next may be a hole.
            page = min(end, at + BLOCKS_AT_ONCE * BLOCK_PAGES)
            entries = self.entries(at, page - at)
            bits = int.from_bytes(entries.tobytes(), "little")  # which is looked through a word at a time
            if bits:
                start = ((bits & -bits).bit_length() - 1) // ENTRY_BITS
                entries.append(NONE)
                return at + start, entries.index(NONE, start) - start
        return None

    # Changing -------------------------------------------------------------------------------------------------------

    def put(self, first: int, sums: array[int]) -> None:
        """Of so many pages. What stands in a damaged block is damaged as before."""
        with self.lock:
            self.create()
            done = 0
            while done < len(sums):
                number, start = divmod(first + done, BLOCK_PAGES)
                count = min(BLOCK_PAGES - start, len(sums) - done)
                self._put(number, start, sums[done : done + count])
                done += count
            self._changed()

    def _put(self, number: int, start: int, sums: array[int]) -> None:
        at = (1 + number) * SECTOR_BYTES
        owner = self._open()
        block = bytearray(os.pread(owner.fd, SECTOR_BYTES, at).ljust(SECTOR_BYTES, b"\0"))
        if block != _EMPTY and not self._fits(number, block):
            self._complain(number)
            return
        changed = block[:]
        changed[4 + 4 * start : 4 + 4 * (start + len(sums))] = sums.tobytes()
        if changed == block:
            return
        changed[:4] = bytes(4) if not any(changed[4:]) else self._checksum(number, changed[4:]).to_bytes(4, "little")
        if os.pwrite(owner.fd, changed, at) < SECTOR_BYTES:
            raise OSError(errno.ENOSPC, f"no room for checksums in {self.path}")

    def cover(self, covered: int) -> None:
        """So many pages, from the first on, have their checksums, or are holes; durable when this returns."""
        with self.lock:
            self.create()
            owner = self._open()
            os.fdatasync(owner.fd)
            if not self._has_durable_name:
                sync_directory(self.path.parent)
                self._has_durable_name = True
            if covered != self.covered and not self.is_header_damaged:
                os.pwrite(owner.fd, self._header(covered), 0)
                os.fdatasync(owner.fd)
                self.covered = covered

    def begin_merge(self) -> None:
        """Behind whoever is making checksums."""
        with self.lock:
            self.is_being_merged = True
            self.merges += 1

    def uncover(self) -> None:
        """Checksums are going to be taken away: durably, nothing is said any more of where there are some."""
        with self.lock:
            if self.is_there and self.covered and not self.is_header_damaged:
                owner = self._open()
                os.pwrite(owner.fd, self._header(0), 0)
                os.fdatasync(owner.fd)
                self.covered = 0

    def sync(self) -> None:
        if self._is_there:
            os.fdatasync(self._open().fd)

    def renew(self) -> None:
        """Damaged blocks are as if they had never been written, the header is whole. An operator has said so."""
        with self.lock:
            if not self.is_there:
                return
            owner = self._open()
            for number in self.damaged_blocks:
                os.pwrite(owner.fd, _EMPTY, (1 + number) * SECTOR_BYTES)
            os.pwrite(owner.fd, self._header(0), 0)
            os.fdatasync(owner.fd)
            self.covered = 0
            self.damaged_blocks = set()
            self.is_header_damaged = False

    # The end --------------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Its layer is no more."""
        with self.lock:
            self.is_gone = True
            self._is_there = False
            self._owner = None
            self.path.unlink(missing_ok=True)
