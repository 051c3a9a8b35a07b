"""The file in which a chain keeps who owns each of its pages: four bytes a page, in chunks, behind a header
(docs/ON-DISK.md).

It is a cache of what the layers' maps say, so that opening a volume reads none of them: losing it costs time and never
a byte, and it is believed only where it can't be wrong. Its header names a ``Place`` in a layer's log: everything up to
there is in the table, perhaps more. While the volume is in use that holds for what the kernel has, so the table counts
as long as the same kernel runs, whoever was killed. After another start of the machine it counts only if it had been
made durable (``finish``) and not been touched since: before the first touch (``use``) the header says otherwise,
durably. What does not fit is unlinked, never written over: its name may come back with a power cut, and is then what it
was.

A wrong owner would be wrong data. So ``finish`` gives each chunk a CRC32C, and a chunk to which nothing was written
since is held against it whenever it is read. What a killed server leaves has none that count.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import crc32c

from shm_server.stores import linux
from shm_server.stores.maplog import PAGE_BYTES, Place, is_of_now

FORMAT = 2
HEADER_BYTES = 4096
CHUNK_PAGES = 1 << 14
CHUNK_BYTES = CHUNK_PAGES * 4
STRIDE_BYTES = CHUNK_BYTES + 4096  # a chunk, and a block of a file system that begins with its checksum
_SUM = struct.Struct("<II")  # its crc32c, and that it has one
_READ_BYTES = CHUNK_BYTES + _SUM.size
_MAGIC = b"OVSOWNER"
# magic, format, page bytes, uuid, boot id, layer, length, claimed, durable, checksum, is finished, chunks, crc32c
_HEADER = struct.Struct("<8sII16s16sQQQQIIQI")
assert _HEADER.size <= 512  # a sector: written whole or not at all


class Table:
    """Owners are bytes to it. Chunks are meant by their numbers, offsets are in bytes from a chunk's first owner."""

    def __init__(self, directory: Path, path: Path | None = None, uuid: str = "") -> None:
        """Without a path it is in the directory, and dies with who opened it."""
        self._directory = directory
        self._path = path
        self._uuid = bytes.fromhex(uuid)
        self._fd = -1
        self._is_finished = False
        self._is_memory = False
        self._is_summed = False  # chunks have checksums
        self._chunks = 0  # that have one
        self._changed: set[int] = set()  # but these: they were written since
        self._seed = crc32c.crc32c(self._uuid)

    # Beginning and end ----------------------------------------------------------------------------------------------

    def recall(self) -> Place | None:
        """What an earlier life knew, if it is to be believed: then use() it; or renew()."""
        if self._path is None:
            return None
        try:
            self._open(os.O_RDWR)
            raw = os.pread(self._fd, _HEADER.size, 0)
        except OSError:
            return None  # a missing file, mostly; whatever it is, there are the maps
        if len(raw) < _HEADER.size or crc32c.crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            return None
        magic, version, page_bytes, uuid, boot, layer, length, claimed, durable, checksum, is_finished, chunks, _ = (
            _HEADER.unpack(raw)
        )
        if (magic, version, page_bytes, uuid) != (_MAGIC, FORMAT, PAGE_BYTES, self._uuid):
            return None
        if not is_finished and not is_of_now(boot):
            return None
        self._is_finished = bool(is_finished)
        self._chunks = chunks
        return Place(layer, length, claimed, durable, checksum, boot)

    def is_in_use(self) -> bool:
        """Or was, by who was killed since."""
        has_place = self.recall() is not None
        self.close()
        return has_place and not self._is_finished

    def use(self, place: Place) -> None:
        """It is going to be written: from now on it is to be believed as long as this kernel runs."""
        self._is_summed = self._is_finished
        self.note(place)
        if self._is_finished:
            os.fdatasync(self._fd)
            self._is_finished = False

    def renew(self) -> None:
        """A new one, in which the base has all; of no meaning before note()."""
        self.close()
        self._is_summed = False
        self._changed.clear()
        if self._path is None:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                self._fd = os.dup(file.fileno())
            self._look()
            return
        self._path.unlink(missing_ok=True)
        self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._is_finished = False

    def note(self, place: Place) -> None:
        """Everything up to there is in the table."""
        self._put_header(place)

    def finish(self, place: Place, known: Sequence[int]) -> None:
        """The same, and all of that is durable; nothing is written any more. ``known``: the chunks that there are."""
        if self._path is not None:
            for number in self._changed if self._is_summed else known:
                owners = self.read(number).ljust(CHUNK_BYTES, b"\0")
                self._write(self._sum(number, owners), number, CHUNK_BYTES, _SUM.size)
            os.fdatasync(self._fd)
            self._put_header(place, len(known))  # not synced: without it the maps are read

    def give_up(self) -> None:
        """Nobody is to believe it. Where its name stays, it is as far as it was noted last: nothing is any more."""
        path, self._path = self._path, None
        if path is not None:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _open(self, flags: int) -> None:
        assert self._path is not None
        self._fd = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        self._look()

    def _look(self) -> None:
        self._is_memory = linux.filesystem_magic(self._fd) == linux.TMPFS_MAGIC

    def _put_header(self, place: Place, chunks: int | None = None) -> None:
        """``chunks`` have their checksums, and all is finished."""
        if self._path is None:
            return
        *fields, boot = place
        end = (chunks is not None, chunks or 0, 0)
        raw = _HEADER.pack(_MAGIC, FORMAT, PAGE_BYTES, self._uuid, boot, *fields, *end)[:-4]
        os.pwrite(self._fd, raw + crc32c.crc32c(raw).to_bytes(4, "little"), 0)

    # Owners ---------------------------------------------------------------------------------------------------------

    def read(self, number: int) -> bytes:
        """Shorter at the end of the file, behind which the base has all. EIO: it is not what it was."""
        return self._owners(number, os.pread(self._fd, _READ_BYTES, HEADER_BYTES + number * STRIDE_BYTES))

    def read_now(self, number: int) -> bytes | None:
        """None: not at once."""
        if self._is_memory:
            return self.read(number)
        buffer = bytearray(_READ_BYTES)
        try:
            count = os.preadv(self._fd, (buffer,), HEADER_BYTES + number * STRIDE_BYTES, os.RWF_NOWAIT)
        except OSError:
            return None
        return self._owners(number, bytes(buffer)) if count == _READ_BYTES else None

    def _owners(self, number: int, raw: bytes) -> bytes:
        owners, checksum = raw[:CHUNK_BYTES], raw[CHUNK_BYTES:]
        if self._is_summed and number not in self._changed and checksum != self._sum(number, owners):
            first = number * CHUNK_PAGES
            raise OSError(errno.EIO, f"{self._path} is damaged: who owns pages {first} to {first + CHUNK_PAGES - 1}")
        return owners

    def _sum(self, number: int, owners: bytes) -> bytes:
        return _SUM.pack(crc32c.crc32c(owners, crc32c.crc32c(number.to_bytes(8, "little"), self._seed)), 1)

    def write(self, owners: array[int], number: int, offset: int) -> None:
        self._changed.add(number)
        self._write(owners, number, offset, len(owners) * 4)

    def _write(self, data: array[int] | bytes, number: int, offset: int, length: int) -> None:
        if os.pwrite(self._fd, data, HEADER_BYTES + number * STRIDE_BYTES + offset) < length:
            raise OSError(errno.ENOSPC, "no room for the owners of a volume's pages")

    def chunks(self) -> Iterator[int]:
        """Those that there are, behind use(); the base has all of the others. EIO: one has gone."""
        count, number = 0, 0
        while (found := self._next_data(number)) is not None:
            number = found + 1
            if self._is_summed:
                raw = os.pread(self._fd, _SUM.size, HEADER_BYTES + found * STRIDE_BYTES + CHUNK_BYTES)
                if raw[4:] != b"\1\0\0\0":
                    continue  # a file system that has no holes
                count += 1
            yield found
        if self._is_summed and count != self._chunks:
            raise OSError(errno.EIO, f"{self._path} is damaged: it has {count} of {self._chunks} chunks")

    def _next_data(self, number: int) -> int | None:
        """From this chunk on, the first of which the file has something; None: none."""
        try:
            at = os.lseek(self._fd, HEADER_BYTES + number * STRIDE_BYTES, os.SEEK_DATA)
            return max(number, (at - HEADER_BYTES) // STRIDE_BYTES)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None
